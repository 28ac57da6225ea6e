"""What the host's own code says about a recorded call: its line, and whether it gives more than the defaults."""

from __future__ import annotations

import inspect
import sys
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from types import FrameType

    from torch import nn

_TORCH = str(Path(torch.__file__).parent)
_PLUMBING = tuple(f"{_TORCH}/{name}" for name in ("overrides.py", "_compile.py", "_dynamo", "utils"))
_HERE = str(Path(__file__).parent)


def host_line(frame: FrameType) -> tuple[str, int]:
    """File and line of the innermost frame outside torch; where all are torch's, of the innermost."""
    while frame.f_back is not None and _starts(frame.f_code.co_filename, _PLUMBING):
        frame = frame.f_back
    found: FrameType | None = frame
    while found is not None and _starts(found.f_code.co_filename, _TORCH):
        found = found.f_back
    if found is None or _starts(found.f_code.co_filename, _HERE):
        found = frame
    return found.f_code.co_filename, found.f_lineno


@cache
def _starts(filename: str, of: str | tuple[str, ...]) -> bool:
    return filename.startswith(of)


@cache
def words(filename: str, line: int) -> str:
    """A file and line, the file as it is seen from Python's search path."""
    roots = [root.rstrip("/") for root in sys.path if root and filename.startswith(root.rstrip("/") + "/")]
    return f"{filename[len(max(roots, key=len)) + 1 :] if roots else filename}:{line}"


def failing_line(error: BaseException) -> str:
    """The host's line that an error came from: the last one on its way that is neither torch's nor ours."""
    place, traceback = "", error.__traceback__
    while traceback is not None:
        filename = traceback.tb_frame.f_code.co_filename
        if not filename.startswith((_TORCH, _HERE)):
            place = words(filename, traceback.tb_lineno)
        traceback = traceback.tb_next
    return place or "a line of torch's"


class Defaults:
    """Whether calls of modules give only one argument that is not the default; remembers the signatures."""

    def __init__(self) -> None:
        self._signatures: dict[Any, list[inspect.Parameter]] = {}

    def hold(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
        """Whether all arguments but the first have the default value of the module's forward."""
        if len(args) == 1 and not kwargs:
            return True
        forward = type(module).forward if "forward" not in vars(module) else module.forward
        if forward not in self._signatures:
            self._signatures[forward] = [p for p in inspect.signature(forward).parameters.values() if p.name != "self"]
        parameters = self._signatures[forward]
        by_name = {p.name: p.default for p in parameters}
        given = [
            *zip(args[1:], (p.default for p in parameters[1:]), strict=False),
            *((value, by_name.get(name, inspect.Parameter.empty)) for name, value in kwargs.items()),
        ]
        return len(args) <= len(parameters) and all(
            value is default or (type(value) is type(default) and bool(value == default)) for value, default in given
        )
