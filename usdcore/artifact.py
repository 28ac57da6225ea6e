"""One file holds a compressed model: safetensors weights, with the plan as JSON in the header. No pickle.

`base + plan + weights` rebuilds the model anywhere. The plan is first carried out without weights, on torch's meta
device, where a model of any size takes no memory; only what fits the file's tensors, one by one, is then filled with
them. So a file can't make usdcore allocate much more than its own size, nor build what it has no weights for.
"""

from __future__ import annotations

import copy
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from usdcore.backbones import with_origin
from usdcore.construct import at_most, constructor_kwargs, create
from usdcore.costs import cost
from usdcore.errors import UsdcoreError, brief
from usdcore.gates import TokenDraw
from usdcore.hooks import registry
from usdcore.masking import GroupMask
from usdcore.plans import Base, Plan, is_token_site, parse_plan
from usdcore.runner import detach, gating_of
from usdcore.surgery import shrink
from usdcore.tensorfile import read_header, read_tensors, write_tensors
from usdcore.units import find_units

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

    from usdcore.gates import Draw, ForwardState, Gating
    from usdcore.tensorfile import Entry, Header

__all__ = ["constructor_kwargs", "create", "load", "load_with_plan", "read_plan", "save"]

KIND = "model"

#: What a base may have for each tensor in the file, for each branch that its plan drops, and besides; and at most.
TENSORS_PER_TENSOR, TENSORS_PER_DROP, MORE_TENSORS, MOST_TENSORS = 2, 32, 128, 6000
#: How many numbers a base may have for each one in the file, and besides: a plan may keep few neurons.
ELEMENTS_PER_ELEMENT, MORE_ELEMENTS = 64, 2**22
#: Gates that can't run without values are tried on one image of a model up to this size (a ViT-L takes 6e10).
MACS_TO_TRY = 10**11


def save(model: nn.Module, plan: Plan, path: str | Path) -> None:
    """Write the model to `path`, aside and then renamed. `plan` must name its base.

    Errors: a plan without a base, weights of several floating types, a disk or folder that can't take the file.
    """
    if plan.base is None:
        msg = "a plan without a base can't be loaded again: give Plan(base=...)"
        raise UsdcoreError(msg)
    tensors: dict[str, Tensor] = model.state_dict()
    _float_type(Path(path), tensors.values())
    stated = plan.model_copy(update={"base": with_origin(plan.base)})
    write_tensors(Path(path), KIND, stated.model_dump_json(), tensors)


def read_plan(path: str | Path) -> Plan:
    """The plan in a model file's header. Errors: no such file, not one of ours, damaged, a damaged plan."""
    return _plan(Path(path), read_header(Path(path), KIND))


def load(path: str | Path, device: str | torch.device = "cpu") -> nn.Module:
    """Rebuild a compressed model from one file: in evaluation mode, where it skips; `train()` masks.

    Errors: a damaged file, an unknown base, a plan that does not fit it, a plugin that is missing (with its
    distribution), weights that do not fit the plan.
    """
    return load_with_plan(path, device)[0]


def load_with_plan(path: str | Path, device: str | torch.device = "cpu") -> tuple[nn.Module, Plan]:
    """`load`, and the plan that the model was made by, from one reading of the file."""
    path = Path(path)
    header = read_header(path, KIND)
    plan = _plan(path, header)
    assert plan.base is not None
    dtype = _float_type(path, header.entries.values())
    empty = _sketch(path, plan, plan.base, header)
    if dtype is not None:
        empty.to(dtype)
    _require_fit(path, empty, header)
    _require_alone(path, plan)
    again, tensors = read_tensors(path, KIND)
    if again.text != header.text:
        msg = f"{path}: was replaced while it was read; give the same command again"
        raise UsdcoreError(msg)
    model = _filled(empty, plan, plan.base, tensors, dtype).eval()
    _require_gates_run(path, model, plan)
    return model.to(device), plan


def _plan(path: Path, header: Header) -> Plan:
    plan = parse_plan(header.text, str(path))
    if plan.base is None:
        msg = f"{path}: its plan names no base model; save the model with Plan(base=...)"
        raise UsdcoreError(msg)
    return plan


def _sketch(path: Path, plan: Plan, base: Base, header: Header) -> nn.Module:
    """The compressed model on the meta device, found able to run."""
    tensors = TENSORS_PER_TENSOR * len(header.entries) + TENSORS_PER_DROP * len(plan.drops) + MORE_TENSORS
    elements = ELEMENTS_PER_ELEMENT * sum(e.numel for e in header.entries.values()) + MORE_ELEMENTS
    try:
        with at_most(min(tensors, MOST_TENSORS), elements), torch.device("meta"):
            small = shrink(create(base), plan)
    except UsdcoreError as error:
        msg = (
            f"{path}: its plan can't be carried out: {error}. Unless that says what to do, make or fetch the file again"
        )
        raise UsdcoreError(msg) from error
    except Exception as error:  # a base that timm can make need not be one that can be traced, or pruned
        reason = brief(f"{type(error).__name__}: {error}", 300)
        msg = f"{path}: its plan can't be carried out on {base.name} ({reason}); make the file anew"
        raise UsdcoreError(msg) from error
    return small


def _require_fit(path: Path, empty: nn.Module, header: Header) -> None:
    """Every tensor that the plan gives is in the file, of its shape and kind, and no other."""
    wanted: dict[str, Tensor] = empty.state_dict()
    for name in (*wanted, *header.entries):
        here, there = wanted.get(name), header.entries.get(name)
        if here is None or there is None:
            reason = f"{brief(name)!r} is {'not in the file' if there is None else 'in the file only'}"
        elif tuple(here.shape) != there.shape:
            reason = f"{brief(name)!r} is {list(there.shape)} in the file and {list(here.shape)} by the plan"
        elif here.dtype != there.dtype:
            reason = f"{brief(name)!r} is {there.dtype} in the file and {here.dtype} by the plan"
        else:
            continue
        msg = f"{path}: its weights do not fit its plan: {reason}; fetch or make the file again"
        raise UsdcoreError(msg)


def _filled(
    empty: nn.Module, plan: Plan, base: Base, tensors: Mapping[str, Tensor], dtype: torch.dtype | None
) -> nn.Module:
    """The model with its weights. Where everything in it is a weight, the dense model is never built."""
    if _is_covered(empty, tensors):
        empty.load_state_dict(dict(tensors), strict=True, assign=True)
        return empty
    model = shrink(create(base), plan)
    if dtype is not None:
        model.to(dtype)
    model.load_state_dict(dict(tensors), strict=True)
    return model


def _is_covered(empty: nn.Module, tensors: Mapping[str, Tensor]) -> bool:
    """Whether a file's tensors are all that a model on the meta device lacks: it computes no tables of its own, and
    no two names share a tensor.
    """
    tensors_of = [*empty.named_parameters(remove_duplicate=False), *empty.named_buffers(remove_duplicate=False)]
    held = [(name, tensor) for name, tensor in tensors_of if tensor.is_meta]
    if {name for name, _ in held} != set(tensors) or len({id(tensor) for _, tensor in held}) < len(held):
        return False
    return not any(tensor.is_meta for module in empty.modules() for tensor in _loose(module))


def _loose(module: nn.Module) -> Iterator[Tensor]:
    """Tensors that a module or a hook of it holds as mere attributes."""
    for owner in (module, *module._forward_pre_hooks.values(), *module._forward_hooks.values()):
        for key, value in getattr(owner, "__dict__", {}).items():
            if key in ("_parameters", "_buffers"):
                continue
            held = value if isinstance(value, list | tuple | dict) else [value]
            items = held.values() if isinstance(held, dict) else held
            yield from (item for item in items if isinstance(item, Tensor))


def _require_alone(path: Path, plan: Plan) -> None:
    """What one strategy must have for itself (the tokens of the model) is not two plugins'."""
    owner: dict[str, str] = {}
    for name in sorted({record.plugin for record in plan.attached.values()}):
        for kind in registry().config("strategy", name).alone:
            if kind in owner:
                msg = f"{path}: its plan has both {owner[kind]} and {name} act on the {kind} of the model"
                raise UsdcoreError(f"{msg}; make the file anew, with one of them")
            owner[kind] = name


def _require_gates_run(path: Path, model: nn.Module, plan: Plan) -> None:
    """A gate of the wrong width, or at a block that is not there, would only show when the model is used."""
    gating = gating_of(model)
    if gating is None or plan.base is None:
        return
    shape = (1, *plan.base.input_shape)
    try:
        state = _decided(copy.deepcopy(model).to("meta"), torch.zeros(shape, device="meta"))
    except Exception:  # gates that look at values can't run there
        detach(bare := copy.deepcopy(model))
        if cost(find_units(bare, torch.zeros(shape, device="meta"))).macs > MACS_TO_TRY:
            return
        try:
            state = _decided(copy.deepcopy(model), torch.zeros(shape))
        except Exception as error:
            msg = f"{path}: its gates don't run ({brief(f'{type(error).__name__}: {error}', 300)}); make the file anew"
            raise UsdcoreError(msg) from error
    sizes = _group_sizes(model)
    for site, draws in state.draws.items():
        if not all(_fits(site, draw, sizes.get(site, 0)) for draw in draws):
            msg = f"{path}: what a gate decides at {brief(site)} does not fit there; make the file anew"
            raise UsdcoreError(msg)
    seen = set(state.draws) | state.asked & gating.reducers.keys()
    for gate in gating.all():
        idle = [site for site in gate.sites if site not in seen or _is_late(gating, gate.tap, site)]
        if idle:
            msg = f"{path}: a gate at {brief(str(gate.tap))} never decides about {brief(idle[0])}; make the file anew"
            raise UsdcoreError(msg)


def _is_late(gating: Gating, tap: str | None, site: str) -> bool:
    """Whether a site is in a block before the one at which its gate decides."""
    order = {name: place for place, name in enumerate(gating.blocks)}
    order |= {branch: order[name] for name, branches in gating.blocks.items() for branch in branches}
    return tap is not None and order.get(site.partition(":")[0], len(order)) < order.get(tap, 0)


@torch.no_grad()
def _decided(model: nn.Module, images: Tensor) -> ForwardState:
    """What gates decide in a forward."""
    model(images.to(next(model.parameters()).dtype))
    gating = gating_of(model)
    assert gating is not None
    return gating.state


def _group_sizes(model: nn.Module) -> dict[str, int]:
    """How many entries each group has that a gate masks."""
    masks: list[object] = []
    for module in model.modules():
        masks += [*module._forward_pre_hooks.values(), *module._forward_hooks.values()]
        masks += getattr(module.__dict__.get("forward"), "masks", ())
    return {mask.group: int(mask.entry_of.max()) + 1 for mask in masks if isinstance(mask, GroupMask)}


def _fits(site: str, draw: Draw, size: int) -> bool:
    """Whether a draw has the shape of its site: a group of `size` entries, a branch or a block (0), or tokens."""
    if is_token_site(site):
        return isinstance(draw, TokenDraw)
    return draw.keep.ndim == 0 or (draw.keep.shape[-1] == size if size else draw.keep.ndim == 1)


def _float_type(path: Path, tensors: Iterable[Tensor | Entry]) -> torch.dtype | None:
    """The one floating type of a model's tensors. Errors: there are several."""
    found = {tensor.dtype for tensor in tensors if tensor.dtype.is_floating_point}
    if len(found) > 1:
        names = " and ".join(sorted(str(dtype) for dtype in found))
        msg = f"{path}: weights of {names} in one model; convert them all to one type, as in model.float()"
        raise UsdcoreError(msg)
    return found.pop() if found else None
