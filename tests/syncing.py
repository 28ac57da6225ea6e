"""Refuses what would make the host wait for a device, on a machine that has none."""

from __future__ import annotations

import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

#: Operations whose result is known on the host, or has a shape that depends on values.
READ = {"_local_scalar_dense", "nonzero", "masked_select", "_unique2", "unique_dim", "bincount", "equal", "is_nonzero"}
#: What is called to bring values to the host, or from there: the latter waits too, unless its memory is pinned.
MOVED = {"item", "tolist", "cpu", "numpy", "__array__", "tensor", "as_tensor", "new_tensor", "from_numpy"}
#: What works on the host, and sends its result without waiting.
ON_THE_HOST = {"group_ids", "sent"}


class _Calls(TorchFunctionMode):
    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = getattr(func, "__name__", "")
        if name == "__getitem__" and any(_is_list(index) for index in _indices(args[1])):
            name = "tensor"  # which is what becomes of a list
        assert name not in MOVED or _is_on_the_host(), f"{name} waits for the device"
        return func(*args, **(kwargs or {}))


class _Operations(TorchDispatchMode):  # type: ignore[no-untyped-call]
    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.overloadpacket.__name__
        assert name not in READ or _is_on_the_host(), f"{name} waits for the device"
        if name in ("index", "index_put", "index_put_"):
            masks = [index for index in args[1] if index is not None and index.dtype == torch.bool]
            assert not masks, "a mask as index waits for the device"
        return func(*args, **(kwargs or {}))


@contextmanager
def no_waiting() -> Iterator[None]:
    """Fails where a call within it would wait."""
    with _Calls(), _Operations():
        yield


def _is_on_the_host() -> bool:
    return any(frame.f_code.co_name in ON_THE_HOST for frame, _ in traceback.walk_stack(None))


def _indices(index: Any) -> tuple[Any, ...]:
    return index if isinstance(index, tuple) else (index,)


def _is_list(index: Any) -> bool:
    return isinstance(index, list)
