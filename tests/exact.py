"""Removing entries must equal zeroing them at the mask points, and cost what was predicted: for any model."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import torch
from counting import counted_macs
from torch import nn
from zoo import gap

from usdcore.costs import cost
from usdcore.passages import close, module_at
from usdcore.plans import Keep, Plan
from usdcore.surgery import shrink
from usdcore.units import find_units
from usdcore.units.types import Group, Units

Output = torch.Tensor | tuple[torch.Tensor, ...]


def random_half(units: Units, kinds: Iterable[str] = ("heads", "hidden"), seed: int = 0) -> Plan:
    """A plan that keeps a random half, at arbitrary indices, of every prunable group of some kinds."""
    generator = np.random.default_rng(seed)
    records = []
    for group in units.groups.values():
        if group.kind in kinds and group.reason is None:
            kept = np.sort(generator.permutation(group.size)[: max(group.size // 2, 1)])
            records.append(Keep(group=group.name, indices=tuple(kept.tolist())))
    return Plan(records=tuple(records))


@torch.no_grad()
def masked_output(model: nn.Module, units: Units, plan: Plan, x: torch.Tensor, shift: int = 0) -> torch.Tensor:
    """The model's output with the entries that the plan removes zeroed; `shift` zeroes others, as a control."""
    handles = []
    for name, indices in plan.kept_groups.items():
        group = units.groups[name]
        factor = np.zeros(group.size)
        factor[(np.array(indices) + shift) % group.size] = 1.0
        for mask in group.masks:
            module, hook = module_at(model, mask.module, mask.edit), _Zero(factor, mask.entry_of, mask.axis)
            is_made = mask.side == "output"
            handles.append(
                module.register_forward_hook(hook.output) if is_made else module.register_forward_pre_hook(hook.input)
            )
    out = flat(model(x))
    for handle in handles:
        handle.remove()
    close(model)
    return out


class _Zero:
    def __init__(self, factor: np.ndarray, entry_of: np.ndarray, axis: int) -> None:  # type: ignore[type-arg]
        self.by_position, self.axis = torch.from_numpy(np.append(factor, 1.0)[entry_of]), axis

    def input(self, _: nn.Module, args: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
        return (self.output(_, args, args[0]), *args[1:])

    def output(self, _: nn.Module, args: object, x: torch.Tensor) -> torch.Tensor:
        shape = [1] * x.ndim
        shape[self.axis] = -1
        return x * self.by_position.view(shape).to(x)


def flat(output: Output) -> torch.Tensor:
    """A model's output, or its outputs side by side."""
    return torch.cat(output, -1) if isinstance(output, tuple) else output


def check_exact(model: nn.Module, x: torch.Tensor, names: Iterable[str], tolerance: float = 1e-9) -> nn.Module:
    """Prune a random half of every group; the groups named must be prunable. Returns the small model.

    `model` is randomised and in evaluation mode, x [B, ...] is a batch in its type.
    """
    example = torch.zeros(1, *x.shape[1:])
    units = find_units(model, example)
    groups: dict[str, Group] = units.groups
    assert {name: groups[name].reason for name in names if groups[name].reason} == {}
    plan = random_half(units)
    small = shrink(model, plan, example)
    masked = masked_output(model, units, plan, x)
    with torch.no_grad():
        out, dense = flat(small(x)), flat(model(x))
    assert list(small.state_dict()) == list(model.state_dict())
    assert gap(dense, masked) > 100 * tolerance
    assert gap(masked_output(model, units, plan, x, shift=1), masked) > 100 * tolerance
    assert gap(out, masked) < tolerance
    assert counted_macs(small, x[:1]) == cost(units, plan).macs  # what does not depend on the input runs once
    assert sum(p.numel() for p in small.parameters()) == cost(units, plan).params
    return small
