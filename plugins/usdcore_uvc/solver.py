"""The primal-dual steps of UVC as its problem states them, independent of the number of steps.

    min over W, s, r, gates  max over y, p, z >= 0:
        Loss + sum_l [y Phi_s(heads) + y Phi_s(neurons) + sum_i p_i Phi_r(dims of head i)] + z * (R - budget)

Phi_k is the sum of the k smallest squared column norms (facts of the public code's `LeastSsum`). Ours: each count moves
by the price of its next entry per share of R that it saves, measured against one multiplier for all; that multiplier is
z plus a part that answers the distance to the budget at once (an augmented Lagrangian), and the budget falls in a line.
A dual grows by the share of its row's norm that is still in what is to go, so that rows of all sizes are heard alike;
in prices duals are taken relative to their mean, which only rescales z. Norms are in units of an attention's.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from usdcore_uvc.counts import AllCounts

if TYPE_CHECKING:
    from usdcore.strategy import StepContext
    from usdcore_uvc.config import UvcConfig
    from usdcore_uvc.gate import UvcGate
    from usdcore_uvc.layout import Layout

#: Width, in units of the multiplier, over which a count's speed goes from full to none.
SOFTNESS = 0.5
#: The distance to the budget is averaged over this share of the phase.
SMOOTHING = 0.02
#: Largest share of its range that a count moves in a step, and its speed in the end as a share of that in the middle.
LARGEST_STEP, LAST_SPEED = 0.05, 0.2


class Solver:
    """Counts, duals and the multiplier of one phase."""

    def __init__(self, config: UvcConfig, layout: Layout, gate: UvcGate, target: float, savings: list[float]) -> None:
        self.config, self.gate, self.target, self.savings = config, gate, target, savings
        device = gate.logits.device
        self.counts = AllCounts(layout, dual=1.0)
        self.shares = torch.tensor(savings, device=device)
        self.z = torch.zeros((), device=device)
        self.distance = torch.zeros((), device=device)
        self.unit = torch.zeros((), device=device)
        self.mass = self._mass(device)
        self.until = self._until()

    def begin_step(self, ctx: StepContext) -> None:
        """Schedules; and this step's norms, from which the entries that the forward counts are chosen."""
        gate, config = self.gate, self.config
        active = self.progress(ctx)
        gate.constant = 1.0 if active is None else None
        gate.noise = max(0.0, 1 - ctx.progress / config.gates_until)
        if ctx.progress >= config.gates_until and gate.settled is None:
            least = 0.0 if self.counts.kinds else 1 - self.target - self.config.within
            gate.settle(self.savings, self.theirs(self.target), least)
        if active is not None:
            self.counts.look()
        gate.keep = self.counts.keep().requires_grad_(active is not None)

    def progress(self, ctx: StepContext) -> float | None:
        """From 0 to 1 after the warm-up; None within it."""
        warmup = self.config.warmup
        return None if ctx.progress < warmup else (ctx.progress - warmup) / (1 - warmup)

    def budget(self, active: float) -> float:
        """The share of the dense model that is asked for now."""
        return 1 - (1 - self.target) * min(1.0, active / self.config.ramp)

    def losses(self, ctx: StepContext, spent: Tensor) -> dict[str, Tensor]:
        """The resource's term for the gates, with the draw that the forward used; R's slopes for the counts."""
        active = self.progress(ctx)
        if active is None:
            return {}
        gate, smoothing = self.gate, SMOOTHING * max(1, ctx.num_steps * (1 - self.config.warmup))
        assert gate.keep is not None
        pulls = gate.drawn is not None and gate.settled is None and self.config.gate_weight != 0
        slopes, *of_gates = _slopes(spent, [gate.keep, gate.drawn] if pulls else [gate.keep])
        self._slopes = ctx.mean(slopes)
        self.distance = self.distance + (spent.detach() - self.budget(active) - self.distance) / max(1.0, smoothing)
        if gate.drawn is None or not of_gates:
            return {}
        force = self.config.gate_weight * (self.multiplier() / self._unit())
        pull = force * of_gates[0] * self._may_skip(active)
        return {"uvc_resource": (pull.detach() * gate.drawn).sum()}

    def _may_skip(self, active: float) -> Tensor:
        """1 for each gate that can be off without the gates saving more than is theirs of what is asked for now."""
        saved = self.shares * (self.gate.margins <= 0)
        others = saved.sum() - saved
        return (others + self.shares <= self.theirs(self.budget(active))).to(self.shares.dtype)

    def theirs(self, budget: float) -> float:
        """The share of the dense model that the gates may save; where nothing else can, as near as whole blocks go."""
        if self.counts.kinds:
            return (1 - self.config.inside) * (1 - budget)
        return 1 - budget + self.config.within

    def multiplier(self) -> Tensor:
        """What a share of R is worth, in units of mass per share."""
        return (self.z + self.config.damping * self._unit() * self.distance).clamp(min=0)

    def after_step(self, ctx: StepContext, lr: float) -> None:
        """Prox on the weights, then counts, then duals."""
        if self.progress(ctx) is None:
            return
        config = self.config
        step = 1 / max(1.0, ctx.num_steps * (1 - config.warmup))
        if self.counts.kinds:
            slopes = self.counts.split(self._slopes)
            mean = torch.cat([counts.dual for counts in self.counts.kinds.values()]).mean()
            multiplier, unit = self.multiplier(), self._unit()
            speed = min(LARGEST_STEP, config.rate * step * self._speed(ctx))
            for kind, counts in self.counts.kinds.items():
                counts.shrink(lr * config.prox * counts.dual)
                slope = counts.row_means(slopes[kind])
                price = counts.dual / mean * counts.least.price(counts.number) / self.mass
                pull = ((multiplier * slope - price) / (SOFTNESS * unit * slope.clamp(min=1e-12))).clamp(-1, 1)
                if ctx.progress < self.until[kind]:
                    counts.set(counts.value + speed * counts.table.sizes * pull)
                else:
                    counts.set(counts.number)
                left = counts.least.total(counts.number) / counts.mass.clamp(min=1e-12)
                counts.dual = counts.dual + config.dual_rate * step * left
        self.z = (self.z + config.z_rate * step * self._unit() * self.distance).clamp(min=0)
        self.gate.keep = None if self.gate.keep is None else self.gate.keep.detach()

    def state_dict(self) -> dict[str, Any]:
        """Counts, duals and the multiplier."""
        scalars = {"z": self.z, "distance": self.distance, "unit": self.unit, "mass": self.mass}
        return {"counts": self.counts.state_dict(), "settled": self.gate.settled, **scalars}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """The inverse of `state_dict`."""
        self.counts.load_state_dict(state["counts"])
        self.gate.settled = None if state["settled"] is None else state["settled"].to(self.gate.logits)
        for name in ("z", "distance", "unit", "mass"):
            setattr(self, name, state[name].to(self.z))

    def _until(self) -> dict[str, float]:
        """Share of the phase until which each kind's counts move: one after the other comes to rest, the coarse first,
        or a head more or less in every layer would keep R swinging to the end.
        """
        last, kinds = self.config.gates_until, list(self.counts.kinds)
        return {kind: last + (1 - last) * (place + 1) / len(kinds) for place, kind in enumerate(kinds)}

    def _speed(self, ctx: StepContext) -> float:
        last = self.config.gates_until
        return max(LAST_SPEED, min(1.0, (1 - ctx.progress) / (1 - last))) if last < 1 else 1.0

    def _mass(self, device: torch.device) -> Tensor:
        """The mean squared norm of an attention projection (of any projection where there is none)."""
        for counts in self.counts.kinds.values():
            norms = counts.table.columns.norms()
            kept = len({row.group for row in counts.table.rows})
            return norms.sum() / kept
        return torch.ones((), device=device)

    def _unit(self) -> Tensor:
        """The middle price per share of R before anything goes: the scale of the multiplier."""
        return torch.where(self.unit > 0, self.unit, self.unit.new_ones(()))

    def measure_unit(self, total: int) -> None:
        """Set the scale from the model as it is; `total` is the dense model's cost."""
        prices = []
        for counts in self.counts.kinds.values():
            cost = counts.value.new_tensor([row.cost for row in counts.table.rows]) / total
            means = counts.row_means(counts.table.columns.norms()) / self.mass
            prices.append(means / cost)
        if prices:
            self.unit = torch.cat(prices).median()


def _slopes(spent: Tensor, of: list[Tensor]) -> list[Tensor]:
    """The gradients of R; the graph stays for the training step's own backward pass."""
    asked = [t for t in of if spent.requires_grad and t.requires_grad and t.numel()]
    found = iter(torch.autograd.grad(spent, asked, retain_graph=True) if asked else ())
    return [next(found) if any(t is own for own in asked) else torch.zeros_like(t) for t in of]
