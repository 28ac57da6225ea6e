"""The record of one forward: values, the ops that make them, and the module calls around the ops. Holds no tensors."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable

    import torch

    from usdcore.units.places import Place
    from usdcore.units.sizes import Expr

OUTSIDE = -1


@dataclass(frozen=True, slots=True)
class Ref:
    """Stands for a tensor in the recorded arguments of an op: the index of its value."""

    value: int


@dataclass(slots=True)
class Value:
    """A tensor at one moment; writing in place makes a new value. `tensor` names a parameter or buffer.

    `is_data`: depends on the model's input. `is_rows`: does not, but holds a row for each sample of the batch (a token
    expanded to it). `overwrites`: this is what a view became when its memory was written through another tensor, and
    the value that it was before.
    """

    index: int
    shape: tuple[int, ...]
    dtype: torch.dtype
    producer: int = OUTSIDE
    is_data: bool = False
    tensor: str | None = None
    overwrites: int | None = None
    is_rows: bool = False


@dataclass(slots=True)
class Op:
    """One aten op. `inputs` are its tensors in the order of the arguments, `call` the innermost module call around it.

    `sizes` gives the expression of int arguments by their position among all ints of the arguments; `loose` are
    expressions in the host's call that could not be matched with an argument. `source` is the host's file and line.
    `overwritten`: what views held that the op wrote through. `is_part`: torch made the op from a composite op of the
    host's, which is in `Trace.wholes`. `places`: the host's functions at work, within the innermost module call.
    """

    index: int
    name: str
    func: Any
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    inputs: tuple[int, ...]
    outputs: tuple[int, ...]
    call: int
    source: str
    sizes: dict[int, Expr] = field(default_factory=dict)
    is_part: bool = False
    overwritten: tuple[int, ...] = ()
    loose: tuple[Expr, ...] = ()
    places: tuple[Place, ...] = ()


@dataclass(slots=True)
class Call:
    """One call of a module. `extra` says that it got more than one tensor, or an argument that is not its default.

    `places`: the functions of the calling module that are at work.
    """

    index: int
    path: str
    parent: int
    inputs: tuple[int, ...]
    extra: bool
    first_op: int
    end_op: int = 0
    places: tuple[Place, ...] = ()
    output: int | None = None


@dataclass(slots=True)
class Trace:
    """Everything recorded.

    `parameters` are numbers of elements by name, `attributes` the values of the host's int attributes by expression,
    `identities` the paths of `nn.Identity` modules, `classes` the class of every module; `ends` see `sizes.TracedInt`.
    """

    values: list[Value] = field(default_factory=list)
    ops: list[Op] = field(default_factory=list)
    wholes: list[Op] = field(default_factory=list)
    calls: list[Call] = field(default_factory=list)
    inputs: tuple[int, ...] = ()
    outputs: tuple[int, ...] = ()
    parameters: dict[str, int] = field(default_factory=dict)
    attributes: dict[Expr, int] = field(default_factory=dict)
    identities: frozenset[str] = frozenset()
    classes: dict[str, type] = field(default_factory=dict)
    ends: set[Expr] = field(default_factory=set)

    def path(self, op: Op) -> str:
        """The path of the module whose code ran the op; "" is the model itself."""
        return self.calls[op.call].path


def refill(arguments: Any, tensor: Callable[[int], Any], number: Callable[[int], int] | None = None) -> Any:
    """Arguments with each `Ref` replaced by `tensor(value)`, and each int by `number(int)`, in `numbers`' order."""
    kind = type(arguments)
    if kind is Ref:
        return tensor(arguments.value)
    if kind is tuple or kind is list:
        return kind([refill(a, tensor, number) for a in arguments])
    if kind is dict:
        return {key: refill(a, tensor, number) for key, a in arguments.items()}
    if kind is int and number is not None:
        return number(arguments)
    return arguments


def numbers(arguments: Any) -> list[int]:
    """All ints in nested arguments, in order; slices count as (start, stop, step); bools and floats do not count."""
    found: list[int] = []
    _collect(arguments, found)
    return found


def _collect(arguments: Any, into: list[int]) -> None:
    if isinstance(arguments, int):
        if not isinstance(arguments, bool):
            into.append(arguments)
    elif isinstance(arguments, (tuple, list)):
        for a in arguments:
            _collect(a, into)
    elif isinstance(arguments, dict):
        for a in arguments.values():
            _collect(a, into)
    elif isinstance(arguments, slice):
        _collect((arguments.start, arguments.stop, arguments.step), into)
