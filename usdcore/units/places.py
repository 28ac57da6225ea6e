"""Where in the host's code a recorded call stands: the function, and the exact expression.

Since Python 3.11 every instruction knows the span of source that it was compiled from, so a frame tells which
expression it is evaluating. That is what `usdcore.rewrite` needs to change one expression of a host's method.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from usdcore.rewrite.types import Span

if TYPE_CHECKING:
    from types import CodeType, FrameType

_TORCH = str(Path(torch.__file__).parent)
_CALLS = f"{_TORCH}/nn/modules/module.py"
_PLUMBING = tuple(f"{_TORCH}/{name}" for name in ("overrides.py", "_compile.py", "_dynamo", "utils"))
_HERE = str(Path(__file__).parent)
_RUNNER = str(Path(__file__).parent.parent / "runner.py")


@dataclass(frozen=True, slots=True)
class Place:
    """An expression of a function that is being evaluated; `span` is None where the code has no positions."""

    code: CodeType
    span: Span | None


def host_places(frame: FrameType | None) -> tuple[Place, ...]:
    """Where the functions stand that are at work within the innermost module call, the innermost function first."""
    while frame is not None and _is_ours(frame.f_code.co_filename):
        frame = frame.f_back
    found = []
    while frame is not None and (filename := frame.f_code.co_filename) != _CALLS:
        if filename != _RUNNER:
            found.append(_place(frame.f_code, frame.f_lasti))
        frame = frame.f_back
    return tuple(found)


@cache
def _is_ours(filename: str) -> bool:
    """Whether code only hands a call on, or records it."""
    return filename.startswith((*_PLUMBING, _HERE, _CALLS))


@cache
def _place(code: CodeType, instruction: int) -> Place:
    line, end_line, column, end_column = next(islice(code.co_positions(), instruction // 2, None))
    if line is None or end_line is None or column is None or end_column is None:
        return Place(code, None)
    return Place(code, Span(line, end_line, column, end_column))
