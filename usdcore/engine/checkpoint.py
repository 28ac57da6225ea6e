"""The whole state of a run in one safetensors file: tensors as tensors, everything else as JSON in the header. No
pickle.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from safetensors import SafetensorError, safe_open
from torch import Tensor

from usdcore.errors import UsdcoreError
from usdcore.files import save_tensors

if TYPE_CHECKING:
    from pathlib import Path

KEY = "usdcore.state"
_TENSOR, _MAP, _TUPLE = "__tensor__", "__map__", "__tuple__"


def write_state(state: dict[str, Any], path: Path) -> None:
    """Write a tree of dicts, lists, tensors, numbers, strings and None; aside, then renamed."""
    tensors: dict[str, Tensor] = {}
    text = json.dumps(_encode(state, tensors))
    save_tensors(tensors, path, {KEY: text})


def read_state(path: Path) -> dict[str, Any]:
    """The tree that `write_state` wrote. Errors: a damaged file, or one of something else."""
    try:
        with safe_open(path, framework="pt") as file:
            text = (file.metadata() or {}).get(KEY)
            if text is None:
                msg = f"{path}: not a checkpoint of a run; remove it to start the run over"
                raise UsdcoreError(msg)
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a dict
    except (SafetensorError, OSError) as error:
        msg = f"{path}: a damaged checkpoint ({error}); remove it to start the run over"
        raise UsdcoreError(msg) from None
    state: dict[str, Any] = _decode(json.loads(text), tensors)
    return state


def _encode(value: Any, tensors: dict[str, Tensor]) -> Any:
    if isinstance(value, Tensor):
        name = f"t{len(tensors)}"
        # A copy, as safetensors refuses tensors that share memory.
        tensors[name] = value.detach().cpu().clone().contiguous()
        return {_TENSOR: name}
    if isinstance(value, dict):
        return {_MAP: [[key, _encode(item, tensors)] for key, item in value.items()]}
    if isinstance(value, tuple):
        return {_TUPLE: [_encode(item, tensors) for item in value]}
    if isinstance(value, list):
        return [_encode(item, tensors) for item in value]
    return value


def _decode(value: Any, tensors: dict[str, Tensor]) -> Any:
    if isinstance(value, list):
        return [_decode(item, tensors) for item in value]
    if isinstance(value, dict):
        if _TENSOR in value:
            return tensors[value[_TENSOR]]
        if _TUPLE in value:
            return tuple(_decode(item, tensors) for item in value[_TUPLE])
        return {key: _decode(item, tensors) for key, item in value[_MAP]}
    return value
