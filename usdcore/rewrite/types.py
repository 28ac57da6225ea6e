"""What is changed in a host's code, and where. Plain data."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, NamedTuple


class Span(NamedTuple):
    """A piece of source: 1-based lines, 0-based columns in bytes."""

    line: int
    end_line: int
    column: int
    end_column: int


@dataclass(frozen=True, order=True)
class Edit:
    """A change of one expression of the method `function`; `span` is where it stands.

    * `size`: argument `number` (see `size_argument`) of a call becomes `value`, -1 where it follows from the others.
    * `drop`: of a sum, only the operand `skip` (0 left, 1 right) stays: the residual branch is never computed.
    * `gate`: a sum becomes `helper(self, number, skip, stream, function of the stream, *options)`; `stream` is the
      local variable that the branch reads, `options` are other arguments of the method that it reads.
    * `pass`: the result of a call goes through the module's child `child_of(edit)`.

    The statements `moved` before a sum belong to its branch: they go with it, or into the function.
    """

    function: str
    span: Span
    kind: Literal["size", "drop", "gate", "pass"]
    number: int = 0
    value: int = 0
    skip: int = 0
    stream: str = ""
    options: tuple[str, ...] = ()
    moved: tuple[Span, ...] = ()


def child_of(edit: Edit) -> str:
    """The name of the child that the result of a call goes through."""
    return f"usdcore_{edit.span.line}_{edit.span.column}"


@dataclass(frozen=True)
class Sum:
    """A sum of a stream and a branch in a method: where, and which operand is the stream's.

    `parts` are where the branch is written: the other operand, and statements before the sum. It starts from the local
    variable `stream`; `options` are other arguments of the method that it reads.
    """

    function: str
    span: Span
    skip: int
    parts: tuple[Span, ...]
    stream: str
    options: tuple[str, ...]

    def edit(self, kind: Literal["drop", "gate"], number: int = 0) -> Edit:
        """The edit that removes the branch, or puts it under gates."""
        return Edit(self.function, self.span, kind, number, 0, self.skip, self.stream, self.options, self.parts[1:])
