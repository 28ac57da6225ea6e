"""A weightless copy of a model that can run, and inputs for it.

Every parameter, buffer and tensor attribute becomes an empty tensor on the meta device, which has a shape but no data.
What a forward leaves behind (caches, counters) stays on the copy. Hooks are not copied: they may hold anything.
"""

from __future__ import annotations

import copy
from collections import OrderedDict
from functools import cache
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from usdcore.errors import UsdcoreError
from usdcore.multihead import open_up
from usdcore.units.flatten import ATOMS
from usdcore.units.plaincopy import copy_plain
from usdcore.units.sizes import TracedInt

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from usdcore.units.sizes import Expr

BATCH = 2  # not 1: an axis of size 1 may be a batch axis or one to broadcast


def meta_copy(model: nn.Module) -> nn.Module:
    """A copy of `model` on the meta device, in evaluation mode, without hooks; `model` is only read."""
    memo: dict[int, Any] = {}
    modules = list(model.modules())
    for module in modules:
        for name, value in vars(module).items():
            if type(value) in ATOMS:
                continue
            if isinstance(value, dict) and _is_hooks(name):
                memo[id(value)] = OrderedDict()
            if not isinstance(value, (dict, list, tuple)) or value:
                for tensor in _tensors_of(name, value):
                    if id(tensor) not in memo:
                        memo[id(tensor)] = _empty(tensor)
    try:
        copy_plain(modules, memo)
        copied = copy.deepcopy(model, memo)
        forget(copied)
        open_up(copied)
        return copied.eval() if any(module.training for module in copied.modules()) else copied
    except Exception as error:
        why = f"{type(error).__name__}: {error}"
        msg = f"find_units: a {type(model).__name__} can't be copied ({why}); give it a working __deepcopy__"
        raise UsdcoreError(msg) from error


@cache
def _is_hooks(name: str) -> bool:
    return name.startswith("_") and "_hooks" in name


def held_tensors(module: nn.Module) -> Iterator[Tensor]:
    """The tensors in a module's attributes, and in dicts, lists and tuples there, that are no parameters or buffers."""
    for name, value in vars(module).items():
        if type(value) not in ATOMS and name not in ("_parameters", "_buffers"):
            yield from _tensors_of(name, value)


def _tensors_of(name: str, value: Any) -> Iterator[Tensor]:
    """The tensors in an attribute of a module, and in a dict, list or tuple there."""
    if name != "_modules":
        inside = value.values() if isinstance(value, dict) else value if isinstance(value, list | tuple) else (value,)
        yield from (tensor for tensor in inside if isinstance(tensor, Tensor))


def forget(model: nn.Module) -> None:
    """Let a copy drop what its forwards keep for later (biases that are gathered once for evaluation, say), in place.

    Hosts that do so drop it when they go to training mode; each module's own mode stays.
    """
    modes = {module: module.training for module in model.modules()}
    for module in modes:
        if type(module).train is not nn.Module.train:
            module.train(True)
            module.train(False)
    for module, mode in modes.items():
        if module.training != mode:
            module.training = mode


def trace_attributes(modules: Mapping[str, nn.Module], ends: set[Expr]) -> dict[Expr, int]:
    """Replace every int attribute of every module by one that remembers its name; for a copy only. Returns them all.

    Ints in a tuple too: the third of `size` is called `size[2]`. `modules` are by path.
    """
    found: dict[Expr, int] = {}
    for path, module in modules.items():
        attributes = vars(module)
        for name, value in list(attributes.items()):
            if type(value) is int:
                found["attr", path, name] = value
                attributes[name] = TracedInt.of(value, ("attr", path, name), ends)
            elif type(value) is tuple and all(type(n) is int for n in value):
                leaves = [("attr", path, f"{name}[{i}]") for i in range(len(value))]
                found.update(zip(leaves, value, strict=True))
                attributes[name] = tuple(TracedInt.of(n, leaf, ends) for n, leaf in zip(value, leaves, strict=True))
    return found


def meta_inputs(model: nn.Module, example_inputs: Tensor | tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    """Inputs of the same shapes on the meta device, with a batch of 2, in the model's floating-point type."""
    inputs = (example_inputs,) if isinstance(example_inputs, Tensor) else tuple(example_inputs)
    if not inputs or not all(isinstance(x, Tensor) and x.ndim > 0 for x in inputs):
        msg = "find_units: example_inputs must be a tensor [B, ...] or a tuple of them"
        raise UsdcoreError(msg)
    dtype = next((p.dtype for p in model.parameters() if p.is_floating_point()), None)
    batch = inputs[0].shape[0]
    shapes = [(BATCH, *x.shape[1:]) if x.shape[0] == batch else tuple(x.shape) for x in inputs]
    dtypes = [dtype if dtype is not None and x.is_floating_point() else x.dtype for x in inputs]
    return tuple(torch.empty(s, dtype=d, device="meta") for s, d in zip(shapes, dtypes, strict=True))


def _empty(tensor: Tensor) -> Tensor:
    empty = torch.empty_like(tensor, device="meta", requires_grad=False)
    return nn.Parameter(empty, requires_grad=tensor.requires_grad) if isinstance(tensor, nn.Parameter) else empty
