"""Run aten ops on meta tensors, fast: the blocks of a transformer repeat, so few ops need to run twice.

A meta kernel only works out the shape of the result, but takes up to a millisecond (layer norm, fused attention).
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

_Spec = tuple[tuple[int, ...], tuple[int, ...], torch.dtype]


class Blank(NamedTuple):
    """Stands for a contiguous tensor on the meta device."""

    shape: tuple[int, ...]
    dtype: torch.dtype


class Executor:
    """Runs ops; remembers shape, strides and type of the result of each op that makes one new tensor."""

    def __init__(self) -> None:
        self._known: dict[Any, _Spec] = {}
        self._makes_new: dict[Any, bool] = {}
        self._shapes: dict[Any, list[tuple[int, ...]]] = {}

    def run(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """The result of `func` for tensors on the meta device; errors are the op's own."""
        makes_new = self._makes_new.get(func)
        if makes_new is None:
            makes_new = self._makes_new[func] = _makes_new(func)
        key = (func, _key(args), _key(kwargs)) if makes_new else None
        spec = self._known.get(key) if key else None
        if spec is not None:
            return torch.empty_strided(spec[0], spec[1], dtype=spec[2], device="meta")
        out = func(*_unbiased(func, args), **kwargs)
        if key and isinstance(out, Tensor) and out.is_meta and not any(out is a for a in args):
            self._known[key] = (tuple(out.shape), out.stride(), out.dtype)
        return out

    def shapes(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> list[tuple[int, ...]]:
        """The shapes of what `func` gives for arguments with a `Blank` for each tensor; none where it fails."""
        key = (func, _key(args), _key(kwargs))
        found = self._shapes.get(key)
        if found is None:
            try:
                with torch.inference_mode():
                    out = self.run(func, _filled(args), _filled(kwargs))
                found = [tuple(t.shape) for t in ((out,) if isinstance(out, Tensor) else out)]
            except Exception:  # whatever an op raises on shapes that do not fit, they do not fit
                found = []
            self._shapes[key] = found
        return found


def _unbiased(func: Any, args: tuple[Any, ...]) -> tuple[Any, ...]:
    """Arguments that give a tensor of the same kind: a bias that fits costs a linear map on the meta device most."""
    if func is not torch.ops.aten.linear.default or len(args) != 3 or args[2] is None:
        return args
    fits = args[0].is_meta and args[2].shape == args[1].shape[:1] and args[0].dtype == args[1].dtype == args[2].dtype
    return args[:2] if fits else args


def _makes_new(func: Any) -> bool:
    schema = func._schema
    return not any(a.alias_info for a in (*schema.arguments, *schema.returns)) and func.namespace == "aten"


def _filled(argument: Any) -> Any:
    """Arguments with a tensor for each `Blank`."""
    kind = type(argument)
    if kind is Blank:
        return torch.empty(argument.shape, dtype=argument.dtype, device="meta")
    if kind is tuple or kind is list:
        return kind([_filled(a) for a in argument])
    if kind is dict:
        return {name: _filled(a) for name, a in argument.items()}
    return argument


def _key(argument: Any) -> Any:
    kind = type(argument)
    if kind is Blank:
        return argument
    if isinstance(argument, Tensor):
        return (argument.shape, argument.stride(), argument.dtype, argument.device)
    if isinstance(argument, (tuple, list)):
        return tuple([_key(a) for a in argument])
    if isinstance(argument, dict):
        return tuple((name, _key(a)) for name, a in argument.items())
    return (kind, argument)
