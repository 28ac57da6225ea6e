"""Weights that somebody else wrote: safetensors, or a torch file read with `weights_only`; neither can run code."""

from __future__ import annotations

import pickle
import re
import warnings
import zipfile
from typing import TYPE_CHECKING, Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file
from torch import Tensor

from usdcore.artifact import read_plan
from usdcore.errors import UsdcoreError, brief
from usdcore.files import open_ordinary
from usdcore.tensorfile import DATA_SUM, HEADER_SUM, TEXT, read_tensors

if TYPE_CHECKING:
    from pathlib import Path

    from torch import nn

_GLOBAL = re.compile(r"GLOBAL ([\w.]+) was not an allowed global")
_CONVERT = (
    "where you trust it, load it with torch elsewhere and save its state dict with safetensors.torch.save_file, "
    "then name that file"
)


def read_weights(path: Path, where: str) -> dict[str, Tensor]:
    """The tensors of a weights file by name. A file of usdcore's own is read with its checksums.

    Errors, which name the option `where`: no such file, a damaged one, one that would have to run code, one that
    unpacks to more than it is, no tensors by name in it.
    """
    try:
        with open_ordinary(path):
            pass
        state = _safetensors(path) if path.suffix == ".safetensors" else _torch_file(path)
        _require_tensors(path, state)
    except UsdcoreError as error:
        msg = f"{where}: {error}"
        raise UsdcoreError(msg) from error
    return state


def fill(model: nn.Module, state: dict[str, Tensor], what: str) -> None:
    """Load weights that must fit exactly. Errors: the first that does not, `what` being where they are from."""
    for name, tensor in model.state_dict().items():
        if name in state and state[name].is_floating_point() != tensor.is_floating_point():
            msg = f"{what} can't be used: {name} is {state[name].dtype}, not {tensor.dtype}; give weights of that type"
            raise UsdcoreError(msg)
    try:
        model.load_state_dict(state, strict=True)
    except RuntimeError as error:
        lines = [line.strip() for line in str(error).splitlines()]  # the first one only names the class
        msg = f"{what} can't be used: {brief(' '.join(lines[1:2] or lines), 300)}; do model.name and its kwargs fit it?"
        raise UsdcoreError(msg) from error


def _safetensors(path: Path) -> dict[str, Tensor]:
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
        if DATA_SUM not in metadata and HEADER_SUM not in metadata and TEXT["model"] not in metadata:
            found: dict[str, Tensor] = load_file(path)
            return found
    except (SafetensorError, OSError) as error:
        msg = f"{path}: a damaged safetensors file ({brief(str(error), 200)}); fetch it again"
        raise UsdcoreError(msg) from None
    if read_plan(path).records:
        msg = f"{path}: a compressed model, which usdcore.load rebuilds; give the weights of a dense one here"
        raise UsdcoreError(msg)
    return read_tensors(path, "model")[1]


def _torch_file(path: Path) -> Any:
    _require_unpacked(path)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch's about old forms of its files
            state = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        found = _GLOBAL.search(str(error))
        asks = f" (it asks for {brief(found[1])})" if found else ""
        msg = f"{path}: holds more than tensors{asks}, and to unpickle that could run code; {_CONVERT}"
        raise UsdcoreError(msg) from None
    except Exception as error:  # torch raises RuntimeError, KeyError, EOFError, ... for a bad file
        first = str(error).strip().partition(". ")[0]  # what follows is advice to load it all the same
        reason = brief(f"{type(error).__name__}: {first}", 120)
        msg = f"{path}: no torch file with tensors alone, or a damaged one ({reason}); {_CONVERT}"
        raise UsdcoreError(msg) from None
    return state.get("model", state.get("state_dict", state)) if isinstance(state, dict) else state


def _require_unpacked(path: Path) -> None:
    """torch stores its archives' parts as they are. Errors: parts that unpack to more than the file, a damaged archive.

    torch takes a file that begins as an archive for one, so it is one here as well.
    """
    with open_ordinary(path) as file:
        if file.read(4) != b"PK\x03\x04":
            return
        try:
            with zipfile.ZipFile(file) as archive:
                whole = sum(part.file_size for part in archive.infolist())
        except Exception as error:  # names that are no text, unknown versions, ...: each has a type of its own
            msg = f"{path}: a damaged archive ({brief(f'{type(error).__name__}: {error}', 120)}); fetch it again"
            raise UsdcoreError(msg) from None
    if whole > path.stat().st_size:
        msg = f"{path}: unpacks to {whole} bytes, more than it is; torch writes no such file: fetch it again"
        raise UsdcoreError(msg)


def _require_tensors(path: Path, state: Any) -> None:
    tensors = state.values() if isinstance(state, dict) else ()
    if not tensors or not all(isinstance(t, Tensor) for t in tensors) or not all(isinstance(k, str) for k in state):
        msg = f"{path}: holds no tensors by name; give a state dict, alone or under 'model' or 'state_dict'"
        raise UsdcoreError(msg)
    for name, tensor in state.items():
        if tensor.layout != torch.strided or tensor.is_meta or tensor.is_quantized:
            msg = f"{path}: {brief(name)} is no plain tensor; {_CONVERT}"
            raise UsdcoreError(msg)
