"""`wanda`: heads and hidden neurons by |weight| times the norm of the input that it meets.

Source: Sun, Liu, Bair, Kolter, A Simple and Effective Pruning Approach for Large Language Models (ICLR 2024,
arXiv:2306.11695), Eq. 1: S_ij = |W_ij| * ||X_j||_2, for a weight from input j to output i. Summed over i, and over the
inputs j that hold one entry of a group, it scores the entry (ours: the paper removes single weights).

Shape legend: B batch, N tokens, P inputs of a projection, n entries of a group.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from usdcore.errors import UsdcoreError
from usdcore.strategy import Attachment, Decision, StepContext, Strategy

if TYPE_CHECKING:
    from usdcore.units.types import Group
    from usdcore_wanda.config import WandaConfig


class Reader:
    """The projection that reads a group: watches its input [B, N, P], and sums the squares of each of the P."""

    def __init__(self, module: nn.Linear, entry_of: Tensor) -> None:
        self.weight, self.entry_of = module.weight, entry_of
        self.now: Tensor | None = None  # of the last training forward, the mean over its rows
        self.squares = torch.zeros(len(entry_of))
        self._handle = module.register_forward_pre_hook(self._see)

    def _see(self, module: nn.Module, args: tuple[Any, ...]) -> None:
        if module.training:
            self.now = args[0].detach().float().square().flatten(0, -2).mean(0)

    def close(self) -> None:
        """Leave the module as it was."""
        self._handle.remove()

    @torch.no_grad()
    def scores(self, size: int) -> Tensor:
        """Eq. 1 summed over outputs and over the inputs of each entry, [n]."""
        per_input = self.weight.detach().float().cpu().abs().sum(0) * self.squares.sqrt()
        total = torch.zeros(size + 1)
        return total.index_add_(0, torch.where(self.entry_of < 0, size, self.entry_of), per_input)[:size]


class Wanda(Strategy):
    """Ranks heads and hidden neurons; the budget says how many of them go."""

    #: No other strategy may act at the same heads or neurons; gates on branches may stand beside it.
    composes = frozenset()
    config: WandaConfig

    def __init__(self, config: WandaConfig) -> None:
        super().__init__(config)
        self.readers: dict[str, list[Reader]] = {}
        self.groups: dict[str, Group] = {}

    def attach(self, site: Attachment) -> None:
        """Watch the projections that read heads and neurons. Errors: there is nothing to prune in this model."""
        kinds = {kind for kind in ("heads", "hidden") if getattr(self.config, kind)}
        groups = [g for g in site.units.groups.values() if g.kind in kinds and g.reason is None]
        self.groups = {group.name: group for group in groups}
        self.readers = {name: self._watch(site, group) for name, group in self.groups.items()}
        if not any(self.readers.values()):
            msg = "wanda: this model has no heads or hidden neurons that linear layers read; try usdcore units MODEL"
            raise UsdcoreError(msg)
        self.groups = {name: group for name, group in self.groups.items() if self.readers[name]}
        site.decides(dict.fromkeys(self.groups, 1))
        site.at_end(self._close)

    def after_backward(self, ctx: StepContext) -> None:
        """Add up what this step's inputs were: the mean over all processes, so that all decide alike."""
        for reader in self._all():
            if reader.now is not None:
                reader.squares = reader.squares + ctx.mean(reader.now).cpu()
                reader.now = None

    def decide(self) -> Decision:
        """A score for each entry. Errors: no step was taken."""
        if not any(bool(reader.squares.any()) for reader in self._all()):
            msg = "wanda: the phase took no step, so no input was seen; give it an epoch"
            raise UsdcoreError(msg)
        return Decision(scores={name: self._score(group) for name, group in self.groups.items()}, ranking=True)

    def state_dict(self) -> dict[str, Any]:
        """What was seen in the running phase, by group."""
        return {"squares": {name: [r.squares for r in self.readers[name]] for name in self.groups}}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on with it, if the phase has begun; a phase that begins looks anew."""
        for name, squares in state["squares"].items() if self.readers else ():
            for reader, seen in zip(self.readers[name], squares, strict=True):
                reader.squares = seen.clone()

    def _watch(self, site: Attachment, group: Group) -> list[Reader]:
        points = [point for point in group.masks if point.side == "input" and point.edit is None]
        modules = [(site.model.get_submodule(point.module), point) for point in points]
        linear = [(module, point) for module, point in modules if isinstance(module, nn.Linear)]
        return [Reader(module, torch.from_numpy(point.entry_of)) for module, point in linear]

    def _score(self, group: Group) -> Tensor:
        total = torch.stack([reader.scores(group.size) for reader in self.readers[group.name]]).sum(0)
        return total / total.mean() if self.config.normalize == "mean" else total

    def _all(self) -> list[Reader]:
        return [reader for readers in self.readers.values() for reader in readers]

    def _close(self) -> None:
        for reader in self._all():
            reader.close()
