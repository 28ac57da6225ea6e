"""The same model with what a plan removes masked instead: gates as usdcore's runner puts them, or zeroed parameters."""

from __future__ import annotations

import copy

import torch
from torch import nn

from usdcore.gates import Draw, ForwardState, Gate, Gating
from usdcore.plans import Plan
from usdcore.runner import attach
from usdcore.units.types import Units


class PlanGate(Gate):
    """Masks exactly what a plan removes."""

    def __init__(self, masks: dict[str, torch.Tensor]) -> None:
        super().__init__()
        self.masks, self.sites = masks, tuple(masks)

    def draw(self, x_BNC: torch.Tensor | None, state: ForwardState) -> dict[str, Draw]:
        """The decisions of the plan."""
        return {site: Draw(mask) for site, mask in self.masks.items()}


def masked(model: nn.Module, units: Units, plan: Plan) -> nn.Module:
    """A masked copy, in evaluation mode. Groups that no factor in the forward can stand for have the entries of their
    parameters set to zero.
    """
    model = copy.deepcopy(model)
    gates = {name: torch.zeros(()) for name in plan.drops}
    for name, kept in plan.kept_groups.items():
        keep = torch.zeros(units.groups[name].size)
        keep[list(kept)] = 1
        if units.groups[name].masks:
            gates[name] = keep
        else:
            zero(model, units, name, keep)
    gating = Gating()
    gating.add("plan", PlanGate(gates))
    gating.mode = "masked"
    attach(model, units, gating)
    return model.eval()


@torch.no_grad()
def zero(model: nn.Module, units: Units, name: str, keep: torch.Tensor) -> None:
    """Set what belongs to a group's removed entries to zero, in place: queries and keys that are zero add nothing."""
    tensors = dict(model.named_parameters()) | dict(model.named_buffers())
    for member in units.groups[name].members:
        entry_of = torch.from_numpy(member.entry_of)
        factor = keep[entry_of.clamp(min=0)].masked_fill(entry_of < 0, 1.0)
        tensor = tensors[member.tensor]
        shape = [1] * tensor.ndim
        shape[member.axis] = -1
        tensor.mul_(factor.reshape(shape).to(tensor.dtype))
