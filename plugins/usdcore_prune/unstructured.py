"""`prune-unstructured`: single weights at zero, by magnitude. What it gains, if anything, no count here shows."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from usdcore.errors import UsdcoreError
from usdcore.strategy import Attachment, Decision, StepContext, Strategy
from usdcore_prune.patterns import shares

if TYPE_CHECKING:
    from collections.abc import Mapping

    from usdcore_prune.config import UnstructuredConfig


class Unstructured(Strategy):
    """Magnitude pruning of single weights (Han et al., 2015), in one step or rising over a phase (Zhu and Gupta, To
    prune, or not to prune, 2017, Eq. 1).
    """

    def __init__(self, config: UnstructuredConfig) -> None:
        super().__init__(config)
        self.masks: dict[str, Tensor] = {}
        self.is_done = False

    @property
    def shrinks(self) -> bool:
        """Zeros are stored and multiplied like any other number."""
        return False

    def attach(self, site: Attachment) -> None:
        """Find the layers. Errors: there are none; patterns that match nothing, or a layer twice."""
        self.num_params = sum(p.numel() for p in site.model.parameters())
        blocks = tuple(f"{block.name}." for block in site.units.blocks) if self.config.weights == "blocks" else ("",)
        self.weights = {
            name: module.weight
            for name, module in site.model.named_modules()
            if isinstance(module, nn.Linear | nn.modules.conv._ConvNd) and name.startswith(blocks)
        }
        if not self.weights:
            msg = "prune-unstructured: this model has no linear or convolution layer in its blocks; try weights: all"
            raise UsdcoreError(msg)
        names = {name: (name,) for name in self.weights}
        self.own = shares(self.config.ratios, names, "prune-unstructured.ratios")
        # What an earlier phase set to zero stays so, in what surgery has left of it.
        self.masks = {name: w.detach() != 0 for name, w in self.weights.items()} if self.is_done else {}

    def begin_step(self, ctx: StepContext) -> None:
        """Raise the sparsity, where it is time to."""
        if ctx.step % self.config.every == 0 or not self.masks:
            self._raise(self._share(ctx.progress))
            self._apply()

    def after_step(self, ctx: StepContext) -> None:
        """The optimizer moves zeros too: put them back."""
        self._apply()

    def decide(self) -> Decision:
        """Nothing to remove; the share of zeros, in words. Averaged weights are zero where the trained ones are."""
        self._raise(1.0)
        self._apply()
        self.is_done = True
        zeros = sum(int((w == 0).sum()) for w in self.weights.values())
        numbers = sum(w.numel() for w in self.weights.values())
        note = (
            f"prune-unstructured: {zeros / numbers:.1%} of the weights of {len(self.weights)} layers are zero "
            f"({zeros / self.num_params:.1%} of all parameters). They are stored and multiplied like any other number: "
            f"MACs, parameters, file and latency are those of the dense layers"
        )
        return Decision(note=note)

    def state_dict(self) -> dict[str, Any]:
        """The masks of the running phase."""
        return {"masks": self.masks, "is_done": self.is_done}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on with them."""
        self.masks, self.is_done = dict(state["masks"]), state["is_done"]

    def _share(self, progress: float) -> float:
        """Of the final sparsity, now."""
        if self.config.ramp == 0 or self.is_done:
            return 1.0
        return float(1 - (1 - min(1.0, progress / self.config.ramp)) ** 3)

    @torch.no_grad()
    def _raise(self, share: float) -> None:
        """New masks at `share` of the final sparsity; what is zero already stays so."""
        values = {name: self._magnitudes(name) for name in self.weights}
        common = [name for name in values if name not in self.own] if self.config.scope == "global" else []
        if common:
            kept = largest(torch.cat([values[name].flatten() for name in common]), share * self.config.sparsity)
            for name, part in zip(common, kept.split([values[n].numel() for n in common]), strict=True):
                self._mask(name, part)
        for name in values.keys() - common:
            self._mask(name, largest(values[name].flatten(), share * self.own.get(name, self.config.sparsity)))

    def _mask(self, name: str, keep: Tensor) -> None:
        """Narrow a layer's mask: an earlier phase may have left more zeros than are asked for now."""
        keep = keep.view_as(self.weights[name])
        self.masks[name] = keep & self.masks[name].to(keep.device) if name in self.masks else keep

    def _magnitudes(self, name: str) -> Tensor:
        """Absolute values, below any other where the weight was removed."""
        values, mask = self.weights[name].detach().abs().float(), self.masks.get(name)
        return values if mask is None else torch.where(mask.to(values.device), values, -1.0)

    @torch.no_grad()
    def _apply(self) -> None:
        for name, mask in self._on_device().items():
            self.weights[name].mul_(mask)

    def _on_device(self) -> Mapping[str, Tensor]:
        self.masks = {name: mask.to(self.weights[name].device) for name, mask in self.masks.items()}
        return self.masks


def largest(values: Tensor, share: float) -> Tensor:
    """Where the values [n] are not among the `share` smallest; of equal ones the first count as smaller. Bools [n]."""
    number = round(share * values.numel())
    if number == 0:
        return torch.ones_like(values, dtype=torch.bool)
    threshold = values.kthvalue(number).values
    keep = values > threshold
    equal = (values == threshold).nonzero().flatten()
    keep[equal[number - int((values < threshold).sum()) :]] = True
    return keep
