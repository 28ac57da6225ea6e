"""The whole state of a run in one safetensors file: tensors as tensors, everything else as JSON in the header. No
pickle. The newest state is kept, and the one before it, should the newest be damaged.
"""

from __future__ import annotations

import json
import math
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from torch import Tensor

from usdcore.errors import UsdcoreError, brief
from usdcore.jsontext import parse_json
from usdcore.tensorfile import DamagedError, read_tensors, write_tensors

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path

KIND = "checkpoint"
_TENSOR, _MAP, _TUPLE, _FLOAT = "__tensor__", "__map__", "__tuple__", "__float__"


class Checkpoints:
    """The states of a run in one folder: `last`, and `previous`, the one before it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.last = folder / "last.safetensors"
        self.previous = folder / "previous.safetensors"
        self._is_whole = False  # `last`, as it lies there: only then may it take the place of `previous`

    @property
    def exist(self) -> bool:
        """Whether the run has come as far as a checkpoint."""
        return self.last.exists() or self.previous.exists()

    def write(self, state: dict[str, Any]) -> None:
        """Write the newest state. Killed at any moment, this leaves a whole one behind. Errors: as `write_state`."""
        write_state(state, self.last, keep=self.previous if self._is_whole else None)
        self._is_whole = True

    def read(self) -> tuple[dict[str, Any], Path, str]:
        """The newest state that is whole, its file, and what was wrong with a newer one ("" if nothing was).

        Errors: none is whole; a file that can't be read, or of another format.
        """
        wrong: list[str] = []
        for path in (self.last, self.previous):
            if path.exists():
                try:
                    state = read_state(path)
                except DamagedError as error:
                    wrong.append(str(error))
                    continue
                self._is_whole = path == self.last
                return state, path, " ".join(wrong)
        msg = f"{self.folder}: no checkpoint is whole; remove this folder to start the run over. {' '.join(wrong)}"
        raise UsdcoreError(msg)


@contextmanager
def restoring(path: Path) -> Iterator[None]:
    """While a run takes over a state that was read: one that does not fit it is an error that says what to do."""
    try:
        yield
    except UsdcoreError as error:
        if str(path) in str(error):
            raise
        msg = f"{path}: this run can't go on from it: {error}. Mend that, or remove {path.parent} to start the run over"
        raise UsdcoreError(msg) from error
    except (LookupError, TypeError, ValueError, AttributeError, RuntimeError) as error:
        reason = brief(f"{type(error).__name__}: {error}", 300)
        msg = (
            f"{path}: a checkpoint that this run can't go on from ({reason}); was it edited, or written with other "
            f"versions or plugins? Remove {path.parent} to start the run over"
        )
        raise UsdcoreError(msg) from error


def write_state(state: dict[str, Any], path: Path, keep: Path | None = None) -> None:
    """Write a tree of dicts, lists, tensors, numbers, strings and None; aside, then renamed. What was at `path` goes to
    `keep`. Errors: a disk or folder that can't take it.
    """
    tensors: dict[str, Tensor] = {}
    text = json.dumps(encode(state, tensors), allow_nan=False)
    write_tensors(path, KIND, text, tensors, keep)


def read_state(path: Path) -> dict[str, Any]:
    """The tree that `write_state` wrote. Errors: `DamagedError`; no such file, one of something else or of another
    format.
    """
    header, tensors = read_tensors(path, KIND)
    try:
        state = decode(parse_json(header.text, "its state"), tensors)
        if not isinstance(state, dict):
            raise TypeError("no mapping")
    except (LookupError, TypeError, ValueError, UsdcoreError) as error:
        msg = f"{path}: damaged: it holds no run's state ({brief(f'{type(error).__name__}: {error}')})"
        raise DamagedError(msg) from None
    return state


def encode(value: Any, tensors: dict[str, Tensor]) -> Any:
    """A tree as JSON can hold it; its tensors are put into `tensors` under names of their own."""
    if isinstance(value, Tensor):
        name = f"t{len(tensors)}"
        tensors[name] = value
        return {_TENSOR: name}
    if isinstance(value, dict):
        return {_MAP: [[key, encode(item, tensors)] for key, item in value.items()]}
    if isinstance(value, tuple):
        return {_TUPLE: [encode(item, tensors) for item in value]}
    if isinstance(value, list):
        return [encode(item, tensors) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return {_FLOAT: str(value)}  # JSON has no such numbers
    return value


def decode(value: Any, tensors: Mapping[str, Tensor]) -> Any:
    """The inverse of `encode`. Errors: `LookupError`, `TypeError` or `ValueError` for what it did not make."""
    if isinstance(value, list):
        return [decode(item, tensors) for item in value]
    if isinstance(value, dict):
        ((tag, content),) = value.items()
        if tag == _TENSOR:
            return tensors[content]
        if tag == _TUPLE:
            return tuple(decode(item, tensors) for item in content)
        if tag == _FLOAT:
            return float(content)
        if tag == _MAP:
            return {key: decode(item, tensors) for key, item in content}
        raise ValueError(f"{tag!r} is no tag")
    return value
