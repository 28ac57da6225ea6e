"""Ints that remember where they came from.

A host's forward computes the sizes that it reshapes to from its attributes (`self.num_heads`) and from shapes
(`B, N, C = x.shape`). To know whether a size follows when heads go, the recorded model holds a `TracedInt` in place of
each int attribute, and each shape is read as `TracedInt`s. Arithmetic on them keeps the expression, so `C //
self.num_heads` can be evaluated again with other values. Where one turns into a float, the trail ends: that is noted.

An expression is a tuple: `("int", n)`, `("attr", module, name)`, `("dim", value, axis)`, or `(operator, left, right)`.
"""

from __future__ import annotations

import operator
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

Expr = tuple[Any, ...]

_OPERATORS: dict[str, Callable[[int, int], int]] = {
    "add": operator.add,
    "sub": operator.sub,
    "mul": operator.mul,
    "floordiv": operator.floordiv,
    "mod": operator.mod,
}
_ENDS = ("truediv", "pow", "divmod", "lshift", "rshift", "and", "or", "xor")


class TracedInt(int):
    """An int with the expression that it is the value of; `ends` collects the leaves whose trail ended in a number."""

    expr: Expr
    ends: set[Expr]

    @classmethod
    def of(cls, value: int, expr: Expr, ends: set[Expr]) -> TracedInt:
        """A traced int; `ends` is shared by all ints of one recording."""
        traced = cls(value)
        traced.expr = expr
        traced.ends = ends
        return traced

    def end(self) -> None:
        """Note that this int became a number that can't be followed."""
        self.ends.update(leaves(self.expr))

    def __float__(self) -> float:
        self.end()
        return float(int.__index__(self))

    def __int__(self) -> int:
        self.end()
        return int.__index__(self)

    def __neg__(self) -> Any:
        return 0 - self

    def __deepcopy__(self, memo: object) -> TracedInt:
        return self


def expression(value: int) -> Expr:
    """The expression of an int, traced or not."""
    return value.expr if isinstance(value, TracedInt) else ("int", int.__index__(value))


def leaves(expr: Expr) -> Iterator[Expr]:
    """The attributes and dims in an expression."""
    if expr[0] in ("attr", "dim"):
        yield expr
    elif expr[0] != "int":
        yield from leaves(expr[1])
        yield from leaves(expr[2])


def evaluate(expr: Expr, leaf: Callable[[Expr], int]) -> int:
    """The value of an expression, where `leaf` gives the values of attributes and dims."""
    if expr[0] == "int":
        return int(expr[1])
    if expr[0] in ("attr", "dim"):
        return leaf(expr)
    return _OPERATORS[expr[0]](evaluate(expr[1], leaf), evaluate(expr[2], leaf))


def _followed(name: str, is_reflected: bool) -> Callable[[TracedInt, Any], Any]:
    def method(self: TracedInt, other: Any) -> Any:
        if not isinstance(other, int):
            self.end()
            return NotImplemented
        left, right = (other, self) if is_reflected else (self, other)
        value = _OPERATORS[name](int.__index__(left), int.__index__(right))
        return TracedInt.of(value, (name, expression(left), expression(right)), self.ends)

    return method


def _ended(name: str) -> Callable[..., Any]:
    plain = getattr(int, name)

    def method(self: TracedInt, *others: Any) -> Any:
        self.end()
        return plain(self, *others)

    return method


for _name in _OPERATORS:
    setattr(TracedInt, f"__{_name}__", _followed(_name, False))
    setattr(TracedInt, f"__r{_name}__", _followed(_name, True))
for _name in _ENDS:
    setattr(TracedInt, f"__{_name}__", _ended(f"__{_name}__"))
    setattr(TracedInt, f"__r{_name}__", _ended(f"__r{_name}__"))
