"""Apply a plan: slice the tensors, remove the branches, attach the gates. The result is physically smaller."""

from __future__ import annotations

import copy
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from usdcore import rewrite
from usdcore.costs import Cost, cost
from usdcore.dropping import drop_branch
from usdcore.errors import UsdcoreError, nearest
from usdcore.gates import Gating
from usdcore.multihead import open_up
from usdcore.owngroups import extended
from usdcore.passages import module_at
from usdcore.ragged import gaps_of, lay_out, layout_of, relaid
from usdcore.runner import attach, gating_of
from usdcore.units import find_units
from usdcore.units.find import count
from usdcore.units.metacopy import forget, held_tensors
from usdcore.units.plaincopy import copy_plain
from usdcore.units.types import WIDTH, is_width

if TYPE_CHECKING:
    from collections.abc import Mapping

    import numpy.typing as npt

    from usdcore.plans import Attach, Plan
    from usdcore.ragged import Way
    from usdcore.strategy import Strategy
    from usdcore.units.types import Group, IntArray, Side, Units

    BoolArray = npt.NDArray[np.bool_]
    Keeps = dict[str, BoolArray]
    #: Tensor name -> axis -> which positions stay.
    Positions = dict[str, dict[int, BoolArray]]


def shrink(
    model: nn.Module, plan: Plan, example_inputs: torch.Tensor | None = None, *, units: Units | None = None
) -> nn.Module:
    """A physically smaller copy of `model` with the same interface; `model` itself is not changed.

    `plan` counts in the indices of `model`. `example_inputs` [B, C, H, W] is needed when the plan names no base.
    `units` are those of `model` where they are known already (by `find_units` on these inputs), to save the search.
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
    units = find_units(model, example_inputs) if units is None else units
    if plan.attached:
        small, left = shrink_found(model, units, plan, example_inputs)
        attach_plan(small, left, plan)
        return small
    small = _cut(model, units, plan)
    _check(cost(units, plan), Cost(*count(small, example_inputs)))
    return small


def shrink_found(model: nn.Module, units: Units, plan: Plan, example_inputs: torch.Tensor) -> tuple[nn.Module, Units]:
    """`shrink` without the gates, for a caller that has the model's units; returns those of the small model too."""
    small = _cut(model, units, plan)
    found = find_units(small, example_inputs)
    _check(cost(units, plan), cost(found))
    return small, found


def _check(predicted: Cost, counted: Cost) -> None:
    assert predicted == counted, f"predicted {predicted}, but the shrunk model counts {counted}"


def _cut(model: nn.Module, units: Units, plan: Plan) -> nn.Module:
    small = _slice(model, units, _keeps(units, plan))
    blocks = {branch.name: (block, branch) for block in units.blocks for branch in block.branches}
    for name in plan.drops:
        if name not in blocks:
            msg = f"the plan drops {name!r}, which this model does not have: {nearest(name, blocks)}"
            raise UsdcoreError(msg)
        drop_branch(small, *blocks[name])
    return small


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
    return out if axes else out.clone()  # what is selected is a copy already


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
    attach(model, extended(units, gating.groups(model, units)), gating.to(device).train(model.training))


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
        group = units.group(name)
        if group is None:
            known = (is_width(name) and units.widths.groups) or units.groups
            why = f" ({units.widths.reason})" if name == WIDTH and units.widths.reason else ""
            msg = f"the plan keeps part of {name!r}, which this model does not have{why}: {nearest(name, known)}"
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
    for parent, inside in units.nested.items():
        for group in inside if parent in keeps else ():
            left = keeps[parent][group.parent_of]
            if not (left & keeps[group.name] if group.name in keeps else left).any():
                msg = f"{group.name}: nothing would be left in the {parent} that stay; drop the branch instead"
                raise UsdcoreError(msg)
    return keeps


def _positions(units: Units, keeps: Keeps) -> Positions:
    positions: Positions = {}
    for name, keep in keeps.items():
        group = units.group(name)
        assert group is not None
        for member in group.members:
            stays = (member.entry_of < 0) | keep[member.entry_of]
            axes = positions.setdefault(member.tensor, {})
            axes[member.axis] = axes.get(member.axis, np.ones_like(stays)) & stays
    return positions


def _slice(model: nn.Module, units: Units, keeps: Keeps) -> nn.Module:
    positions = _positions(units, keeps)
    tensors = dict(model.named_parameters(remove_duplicate=False)) | dict(model.named_buffers(remove_duplicate=False))
    memo = {id(tensors[name]): _sliced(tensors[name], axes) for name, axes in positions.items()}
    # What a forward with gradients left behind can't be copied as it is.
    held = (tensor for module in model.modules() for tensor in held_tensors(module))
    memo |= {id(tensor): tensor.detach().clone() for tensor in held if not tensor.is_leaf}
    copy_plain(list(model.modules()), memo)
    small = copy.deepcopy(model, memo)
    open_up(small)
    forget(small)
    for name, keep in keeps.items():
        group = units.group(name)
        assert group is not None
        _follow(small, group, int((~keep).sum()))
    _restate(small, positions)
    _lay_out(model, small, units, keeps)
    return small


def _lay_out(model: nn.Module, small: nn.Module, units: Units, keeps: Keeps) -> None:
    """Tell the modules around nested groups which positions of theirs hold what is left."""
    sides: dict[tuple[str, Way], list[tuple[Group, Side]]] = {}
    for group in units.groups.values():
        if group.slots is not None and keeps.keys() & {group.name, group.parent}:
            for side in group.slots.writers:
                sides.setdefault((side.module, "made"), []).append((group, side))
            for side in group.slots.readers:
                sides.setdefault((side.module, "read"), []).append((group, side))
    positions = _positions(units, keeps)
    for (path, way), own in sides.items():
        tensor, axis = own[0][1].tensor, 0 if way == "made" else 1
        weight = model.get_parameter(tensor)
        width, module = weight.shape[axis], module_at(small, path, own[0][1].edit)
        stays = positions.get(tensor, {}).get(axis, np.ones(width, dtype=bool))
        rows = [_rows(group, side, keeps) for group, side in own]
        layout = relaid(layout_of(module, way, width), rows, stays)
        lay_out(module, way, layout, own[0][1].axis, weight.device)


def _rows(group: Group, side: Side, keeps: Keeps) -> tuple[IntArray, BoolArray, bool]:
    """The positions of a nested group, which rows of them stay, and whether what is left may move in them."""
    assert group.slots is not None
    parents = keeps.get(group.parent or "")
    kept = np.ones(len(side.table), dtype=bool) if parents is None else parents[side.parent_of]
    return side.table, kept, group.slots.moves and group.name in keeps


def _sliced(tensor: torch.Tensor, axes: Mapping[int, npt.NDArray[np.bool_]]) -> torch.Tensor:
    out = slice_tensor(tensor, axes)
    return nn.Parameter(out, requires_grad=tensor.requires_grad) if isinstance(tensor, nn.Parameter) else out


def _follow(model: nn.Module, group: Group, num_removed: int) -> None:
    for attribute in group.attributes:
        module, (name, *keys) = model.get_submodule(attribute.module), attribute.name.replace("]", "").split("[")
        setattr(module, name, _lowered(getattr(module, name), keys, num_removed * attribute.per_entry))
    for path, edit in group.edits if num_removed else ():
        rewrite.edit(model.get_submodule(path), [edit])


def _lowered(value: Any, keys: list[str], by: int) -> Any:
    """A number, or a copy of a tuple, list or dict with the number at `keys`, lowered."""
    if not keys:
        return value - by
    if isinstance(value, dict):
        return value | {keys[0]: _lowered(value[keys[0]], keys[1:], by)}
    return type(value)(_lowered(v, keys[1:], by) if str(i) == keys[0] else v for i, v in enumerate(value))


def _restate(model: nn.Module, tensors: Mapping[str, object]) -> None:
    """The sizes that torch's own modules do not read in their forward, but everyone who looks at one does."""
    for name in tensors:
        module = model.get_submodule(name.rpartition(".")[0])
        if isinstance(module, nn.Linear):
            made, read = gaps_of(module, "made"), gaps_of(module, "read")
            module.out_features = len(made.layout if made else module.weight)
            module.in_features = len(read.layout) if read else module.weight.shape[1]
        elif isinstance(module, nn.Conv1d | nn.Conv2d | nn.Conv3d):
            module.out_channels = len(module.weight)
            module.in_channels = module.weight.shape[1] * module.groups
        elif isinstance(module, _BatchNorm) and module.running_mean is not None:
            module.num_features = len(module.running_mean)
