"""Apply a plan: slice the tensors, remove the branches, attach the gates. The result is physically smaller."""

from __future__ import annotations

import copy
from types import MappingProxyType
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import nn

from usdcore.costs import cost
from usdcore.errors import UsdcoreError, nearest
from usdcore.gates import Gating
from usdcore.ragged import RaggedReader, RaggedWriter, lay_out, layout_of, relaid
from usdcore.runner import attach, drop_branch, gating_of
from usdcore.units import find_units

if TYPE_CHECKING:
    from collections.abc import Mapping

    import numpy.typing as npt

    from usdcore.plans import Attach, Plan
    from usdcore.strategy import Strategy
    from usdcore.units.types import Group, IntArray, Units

    BoolArray = npt.NDArray[np.bool_]
    Keeps = dict[str, BoolArray]
    #: Tensor name -> axis -> which positions stay.
    Positions = dict[str, dict[int, BoolArray]]


def shrink(model: nn.Module, plan: Plan, example_inputs: torch.Tensor | None = None) -> nn.Module:
    """A physically smaller copy of `model` with the same interface; `model` itself is not changed.

    `plan` counts in the indices of `model`. `example_inputs` [B, C, H, W] is needed when the plan names no base.
    Weights that go are never copied. The cost of the result is checked against the prediction before it is handed out.
    Errors: a group or branch that is not in the model, is not prunable (with the reason), an index out of range.
    """
    if gating_of(model) is not None:
        msg = "this model already has gates: shrink the model they were attached to (runner.detach takes them off)"
        raise UsdcoreError(msg)
    if example_inputs is None:
        if plan.base is None:
            msg = "the plan names no base, so shrink needs example_inputs to trace the model with"
            raise UsdcoreError(msg)
        example_inputs = torch.zeros(1, *plan.base.input_shape, device="meta")
    small, units = shrink_found(model, find_units(model, example_inputs), plan, example_inputs)
    attach_plan(small, units, plan)
    return small


def shrink_found(model: nn.Module, units: Units, plan: Plan, example_inputs: torch.Tensor) -> tuple[nn.Module, Units]:
    """`shrink` without the gates, for a caller that has the model's units; returns those of the small model too."""
    small = _slice(model, units, _keeps(units, plan))
    blocks = {branch.name: (block, branch) for block in units.blocks for branch in block.branches}
    for name in plan.drops:
        if name not in blocks:
            msg = f"the plan drops {name!r}, which this model does not have: {nearest(name, blocks)}"
            raise UsdcoreError(msg)
        drop_branch(small, *blocks[name])
    found = find_units(small, example_inputs)
    predicted, counted = cost(units, plan), cost(found)
    assert predicted == counted, f"predicted {predicted}, but the shrunk model counts {counted}"
    return small, found


def kept_positions(units: Units, plan: Plan) -> Positions:
    """What `shrink` keeps of each tensor that it slices: whatever has a tensor's shape (an optimizer's moments,
    averaged weights) can be sliced alike with `slice_tensor`. Errors: as `shrink`.
    """
    return _positions(units, _keeps(units, plan))


def slice_tensor(tensor: torch.Tensor, axes: Mapping[int, npt.NDArray[np.bool_]]) -> torch.Tensor:
    """A copy of the positions that stay on each axis."""
    out = tensor.detach()
    for axis, stays in axes.items():
        out = out.index_select(axis, torch.from_numpy(np.flatnonzero(stays)).to(out.device))
    return out.clone()


def attach_plan(
    model: nn.Module, units: Units, plan: Plan, known: Mapping[str, type[Strategy]] = MappingProxyType({})
) -> None:
    """Put the gates that the plan's attach records name on a shrunk model, in place, with fresh weights.

    `known` are strategy classes by name that need no registry. Errors: a plugin that is not installed, with its
    distribution.
    """
    if not plan.attached:
        return
    gating = Gating()
    for key, record in plan.attached.items():
        strategy = known.get(record.plugin) or _installed(record)
        gating.add(key, strategy.rebuild(record))
    device = next(model.parameters()).device
    attach(model, units, gating.to(device).train(model.training))


def _installed(record: Attach) -> type[Strategy]:
    from usdcore.hooks import registry

    if record.plugin not in registry().names("strategy"):
        msg = (
            f"the model needs the strategy {record.plugin!r} of the package {record.distribution} {record.version}, "
            f"which is not installed here. Plugins are code: where you trust it, pip install {record.distribution}"
        )
        raise UsdcoreError(msg)
    strategy: type[Strategy] = registry().load("strategy", record.plugin)
    return strategy


def _keeps(units: Units, plan: Plan) -> Keeps:
    """The kept entries of each group of the plan, checked."""
    keeps: Keeps = {}
    for name, indices in plan.kept_groups.items():
        group = units.groups.get(name)
        if group is None:
            msg = f"the plan keeps part of {name!r}, which this model does not have: {nearest(name, units.groups)}"
            raise UsdcoreError(msg)
        if group.reason is not None:
            msg = f"{name} can't be pruned: {group.reason}"
            raise UsdcoreError(msg)
        if not indices:
            msg = f"{name}: nothing would be left; drop the branch instead"
            raise UsdcoreError(msg)
        if indices[-1] >= group.size:
            msg = f"{name}: index {indices[-1]} is out of range, the group has {group.size} entries"
            raise UsdcoreError(msg)
        keep = np.zeros(group.size, dtype=bool)
        keep[list(indices)] = True
        keeps[name] = keep
    for parent, group in units.nested.items():
        if group.name in keeps and parent in keeps and not keeps[parent][group.parent_of][keeps[group.name]].any():
            msg = f"{group.name}: nothing would be left in the {parent} that stay; drop the branch instead"
            raise UsdcoreError(msg)
    return keeps


def _positions(units: Units, keeps: Keeps) -> Positions:
    positions: Positions = {}
    for name, keep in keeps.items():
        for member in units.groups[name].members:
            stays = (member.entry_of < 0) | keep[member.entry_of]
            axes = positions.setdefault(member.tensor, {})
            axes[member.axis] = axes.get(member.axis, np.ones_like(stays)) & stays
    return positions


def _slice(model: nn.Module, units: Units, keeps: Keeps) -> nn.Module:
    positions = _positions(units, keeps)
    tensors = dict(model.named_parameters(remove_duplicate=False)) | dict(model.named_buffers(remove_duplicate=False))
    memo = {id(tensors[name]): _sliced(tensors[name], axes) for name, axes in positions.items()}
    small = copy.deepcopy(model, memo)
    for name, keep in keeps.items():
        _follow(small, units.groups[name], int((~keep).sum()))
    _restate_linears(small, positions)
    for parent, group in units.nested.items():
        if keeps.keys() & {parent, group.name}:
            _lay_out(model, small, group, keeps.get(parent), positions)
    return small


def _lay_out(model: nn.Module, small: nn.Module, group: Group, parents: BoolArray | None, positions: Positions) -> None:
    """Tell the modules around a nested group which of its entries are left in which parent."""
    slots = group.slots
    assert slots is not None
    parents = np.ones(len(slots.written), dtype=bool) if parents is None else parents
    sides: tuple[tuple[str, IntArray, int, type[RaggedWriter | RaggedReader]], ...] = (
        (slots.writer, slots.written, 0, RaggedWriter),
        (slots.reader, slots.read, 1, RaggedReader),
    )
    for path, table, axis, kind in sides:
        before, after = model.get_submodule(path), small.get_submodule(path)
        assert isinstance(before, nn.Linear)
        assert isinstance(after, nn.Linear)
        layout = layout_of(before, before.weight.shape[axis])
        lay_out(after, relaid(layout, table, parents, positions[f"{path}.weight"][axis]), kind)


def _sliced(tensor: torch.Tensor, axes: Mapping[int, npt.NDArray[np.bool_]]) -> torch.Tensor:
    out = slice_tensor(tensor, axes)
    return nn.Parameter(out, requires_grad=tensor.requires_grad) if isinstance(tensor, nn.Parameter) else out


def _follow(model: nn.Module, group: Group, num_removed: int) -> None:
    for attribute in group.attributes:
        module = model.get_submodule(attribute.module)
        setattr(module, attribute.name, getattr(module, attribute.name) - num_removed * attribute.per_entry)


def _restate_linears(model: nn.Module, tensors: Mapping[str, object]) -> None:
    """`in_features` and `out_features` are not read by torch's own linear, but by everyone who looks at one."""
    for name in tensors:
        module = model.get_submodule(name.rpartition(".")[0])
        if isinstance(module, nn.Linear):
            module.out_features, module.in_features = module.weight.shape
