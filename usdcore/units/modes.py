"""The two torch modes that watch a forward: one below torch's API (aten ops), one above it (the host's own calls)."""

from __future__ import annotations

from contextlib import contextmanager
from functools import cache
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from usdcore.units.flatten import tensors_in

if TYPE_CHECKING:
    from collections.abc import Iterator

    from usdcore.units.record import Recorder

# Composite ops that are recorded whole, as a rule knows them; every other composite op is broken up.
WHOLE = frozenset(
    {"linear", "matmul", "scaled_dot_product_attention", "conv1d", "conv2d", "conv3d"}
    | {"layer_norm", "rms_norm", "group_norm", "batch_norm", "softmax", "log_softmax", "dropout"}
    | {"reshape", "flatten", "unflatten", "chunk", "contiguous", "to"}
)
_SHAPE = torch.Tensor.shape


class ObserveOps(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Sees every aten op."""

    def __init__(self, recorder: Recorder) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.recorder = recorder

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if _is_composite(func) and func.overloadpacket.__name__ not in WHOLE:
            return self.recorder.parts(func, args, kwargs, lambda: self._decomposed(func, args, kwargs))
        return self.recorder.op(func, args, kwargs)

    def _decomposed(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        with self:
            return func.decompose(*args, **kwargs)


class ObserveFunctions(TorchFunctionMode):
    """Sees every call of a torch function or tensor method in the host's code."""

    def __init__(self, recorder: Recorder) -> None:
        super().__init__()
        self.recorder = recorder

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if getattr(func, "__self__", None) is _SHAPE or (func is torch.Tensor.size and len(args) == 1):
            return self.recorder.shape(args[0])
        if func is torch.Tensor.size:
            return self.recorder.shape(args[0])[args[1]]
        self.recorder.begin(func, args, kwargs)
        if (args and isinstance(args[0], Tensor)) or tensors_in((args, kwargs)):
            out = func(*args, **kwargs)
        else:
            with ordinary():
                out = func(*args, **kwargs)
        self.recorder.end()
        return out


@contextmanager
def ordinary() -> Iterator[None]:
    """Within the recording's inference mode: for tensors with data, which do not come from the copy.

    A host may keep one for later, outside of the copy (a table that a cached function makes), and train with it.
    """
    with torch.inference_mode(False), torch.no_grad():
        yield


@cache
def _is_composite(func: Any) -> bool:
    return bool(func.has_kernel_for_dispatch_key(torch._C.DispatchKey.CompositeImplicitAutograd))
