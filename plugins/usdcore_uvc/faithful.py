"""UVC's steps as the public code takes them, with its oddities, so that the difference can be measured.

Reproduced: z's learning rate stays at its first value; every rate is per step; R - budget is clamped before its
gradient is taken; the pruned shares are clamped to [0, 1]; heads and neurons share one tensor and one clip; a gate's
gradients are weighted by their place in the interval, then averaged; gates are also in the model's AdamW; the Gumbel
noise of R is not that of the forward; in the warm-up every block runs at half strength.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from usdcore_uvc.counts import AllCounts, Counts

if TYPE_CHECKING:
    from usdcore.strategy import StepContext
    from usdcore_uvc.config import UvcConfig
    from usdcore_uvc.gate import UvcGate
    from usdcore_uvc.layout import Layout
    from usdcore_uvc.public import PublicCost

#: Initial value of every dual variable.
DUAL = 1e-3


class PublicSolver:
    """The same state as `Solver`'s, moved by the public code's rules."""

    def __init__(self, config: UvcConfig, layout: Layout, gate: UvcGate, target: float, cost: PublicCost) -> None:
        self.config, self.gate, self.target, self.cost = config, gate, target, cost
        self.layout = layout
        self.counts = AllCounts(layout, DUAL)
        self.z = torch.full((), DUAL, dtype=torch.float64, device=gate.logits.device)
        self.velocity = torch.zeros_like(gate.logits)
        self.waiting = torch.zeros_like(gate.logits)
        self.loss_gradient = torch.zeros_like(gate.logits)
        names = [row.group for row in layout.dims.rows]
        places = {name: place for place, name in enumerate(dict.fromkeys(names))}
        self.attention_of = torch.tensor([places[name] for name in names], device=gate.logits.device)
        zeros = torch.zeros(len(places), dtype=torch.float64, device=gate.logits.device)
        self.num_dims = zeros.index_add(0, self.attention_of, layout.dims.sizes.double()) if names else zeros

    def begin_step(self, ctx: StepContext) -> None:
        """Soft Gumbel gates with full noise throughout; half of every block in the warm-up."""
        gate = self.gate
        gate.constant = 0.5 if self._is_warm_up(ctx) else None
        gate.hard, gate.noise = False, 1.0
        self.counts.look()
        gate.keep = self.counts.keep()

    def losses(self, ctx: StepContext, spent: Tensor) -> dict[str, Tensor]:
        """None: the resource's gradients are added by hand."""
        return {}

    def after_backward(self) -> None:
        """Keep the task's gradient on the gates, as clipped."""
        grad = self.gate.logits.grad
        self.loss_gradient = torch.zeros_like(self.gate.logits) if grad is None else grad.clone()

    def after_step(self, ctx: StepContext, lr: float) -> None:
        """Prox, then gates, counts s, counts r, then duals."""
        kinds = self.counts.kinds
        self.counts.look()
        for kind in ("dims", "heads", "hidden"):
            if kind in kinds:
                kinds[kind].shrink(lr * kinds[kind].dual)
        if self._is_warm_up(ctx):
            return
        public = self.config.public
        variables = [counts.value.double().requires_grad_() for counts in kinds.values()]
        logits = self.gate.logits.detach().double().requires_grad_()
        distance = self.ratio(dict(zip(kinds, variables, strict=True)), logits) - self.target
        clipped = self.z * distance.clamp(-public.z_grad_clip, public.z_grad_clip)
        *slopes, gate_slope = torch.autograd.grad(clipped, [*variables, logits], allow_unused=True)
        self._step_gates(ctx, gate_slope)
        steps = dict(zip(kinds, slopes, strict=True))
        self._step_counts([k for k in ("heads", "hidden") if k in kinds], steps, public.slr)
        self._step_counts([k for k in ("dims",) if k in kinds], steps, public.rlr)
        for kind, counts in kinds.items():
            rate = public.plr if kind == "dims" else public.ylr
            counts.dual = (counts.dual + rate * counts.least.total(counts.number)).clamp(min=0)
        self.z = (self.z + public.zlr * distance.detach()).clamp(min=0)

    def ratio(self, values: dict[str, Tensor], logits: Tensor) -> Tensor:
        """R of counts (straight through their rounding) under a fresh draw of the gates."""
        numbers = {kind: value.detach().ceil() + (value - value.detach()) for kind, value in values.items()}
        attention, ffn = self.cost.query, self.cost.ffn
        heads = hidden = torch.ones((), dtype=torch.float64, device=logits.device)
        if "heads" in numbers:
            heads = 1 - self._clamp(numbers["heads"] / self.layout.heads.sizes)
        value_share = heads
        if "dims" in numbers:
            value_share = heads - self._dims_share(numbers["dims"])
        if "hidden" in numbers:
            hidden = 1 - self._clamp(numbers["hidden"] / self.layout.hidden.sizes)
        rho = value_share.expand_as(attention)
        return self.cost.ratio(heads.expand_as(attention), rho, hidden.expand_as(ffn), self._execute(logits))

    def state_dict(self) -> dict[str, Any]:
        """Counts, duals, the multiplier, and the gates' optimizer."""
        return {
            "counts": self.counts.state_dict(),
            "z": self.z,
            "velocity": self.velocity,
            "waiting": self.waiting,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """The inverse of `state_dict`."""
        self.counts.load_state_dict(state["counts"])
        self.z = state["z"].to(self.z)
        self.velocity = state["velocity"].to(self.velocity)
        self.waiting = state["waiting"].to(self.waiting)

    def _is_warm_up(self, ctx: StepContext) -> bool:
        return ctx.progress < self.config.warmup

    def _execute(self, logits: Tensor) -> Tensor:
        uniform = torch.rand(len(logits), 2, dtype=torch.float64, device=logits.device).clamp(1e-12, 1 - 1e-12)
        return torch.softmax((logits - torch.log(-torch.log(uniform))) / self.gate.tau, dim=1)[:, 1]

    def _clamp(self, share: Tensor) -> Tensor:
        """To [0, 1], with torch's own gradient, which is 0 at the bound, or with one that passes there."""
        clamped = share.clamp(0, 1)
        return clamped if self.config.public.clamp_gradient == "torch" else share + (clamped - share).detach()

    def _dims_share(self, number: Tensor) -> Tensor:
        """Of each attention: dims that go from heads that stay, as a share of all its dims."""
        dims = self.layout.dims
        gone = self._clamp(number / dims.sizes) * dims.sizes
        if "heads" in self.counts.kinds:
            stays = torch.cat([self.counts.kinds["heads"].keep(), dims.sizes.new_ones(1)])
            gone = gone * stays[self.layout.head_of]
        return torch.zeros_like(self.num_dims).index_add(0, self.attention_of, gone) / self.num_dims

    def _step_gates(self, ctx: StepContext, slope: Tensor | None) -> None:
        """SGD with momentum 0.9 and weight decay 1e-4, once an interval, on the mean of weighted gradients."""
        public, place = self.config.public, ctx.step % self.config.public.gating_interval
        gradient = self.loss_gradient
        if slope is not None:
            gradient = gradient + public.gating_weight * slope.to(gradient.dtype)
        self.waiting = self.waiting + gradient * place
        if place + 1 < public.gating_interval:
            return
        with torch.no_grad():
            mean = self.waiting / public.gating_interval + 1e-4 * self.gate.logits
            self.velocity = 0.9 * self.velocity + mean
            self.gate.logits.sub_(public.glr * self.velocity)
        self.waiting = torch.zeros_like(self.waiting)

    def _step_counts(self, names: list[str], slopes: dict[str, Tensor | None], rate: float) -> None:
        """One tensor, one clip of its gradient's largest entry to 1."""
        if not names:
            return
        chosen: list[Counts] = [self.counts.kinds[name] for name in names]
        gradients = []
        for name, counts in zip(names, chosen, strict=True):
            price = counts.dual * counts.least.price(counts.number)
            decay = self.config.public.sl2wd * counts.value / counts.table.sizes
            slope = slopes[name]
            gradient = price + decay + (0.0 if slope is None else slope.to(price.dtype))
            leaves = ((counts.value <= 0) & (gradient > 0)) | ((counts.value >= counts.limit) & (gradient < 0))
            gradients.append(gradient.masked_fill(leaves, 0.0))
        largest = torch.cat(gradients).abs().max().clamp(min=1.0)
        for counts, gradient in zip(chosen, gradients, strict=True):
            counts.set(counts.value - rate * gradient / largest)
