"""Polynomials in numbers of entries: how a cost depends on the widths of residual streams."""

from __future__ import annotations

from dataclasses import dataclass
from math import prod
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping


@dataclass(frozen=True)
class Terms:
    """A sum of integer multiples of products of counts: `{("a", "a"): 3, (): 5}` is 3 a^2 + 5.

    Arithmetic with ints and other terms stays exact; `//` is by a number that divides each multiple.
    """

    factors: Mapping[tuple[str, ...], int]

    @classmethod
    def number(cls, value: int) -> Terms:
        """A number that depends on nothing."""
        return cls({(): value})

    def at(self, counts: Mapping[str, int]) -> int:
        """The value for these counts; each name that occurs must have one."""
        return sum(factor * prod(counts[name] for name in names) for names, factor in self.factors.items())

    def __add__(self, other: Terms | int) -> Terms:
        found = dict(self.factors)
        for names, factor in _terms(other).factors.items():
            found[names] = found.get(names, 0) + factor
        return Terms(found)

    def __mul__(self, other: Terms | int) -> Terms:
        found: dict[tuple[str, ...], int] = {}
        for left, a in self.factors.items():
            for right, b in _terms(other).factors.items():
                names = tuple(sorted((*left, *right)))
                found[names] = found.get(names, 0) + a * b
        return Terms(found)

    def __sub__(self, other: Terms | int) -> Terms:
        return self + _terms(other) * -1

    def __floordiv__(self, number: int) -> Terms:
        return Terms({names: factor // number for names, factor in self.factors.items()})

    __radd__, __rmul__ = __add__, __mul__


def _terms(value: Terms | int) -> Terms:
    return value if isinstance(value, Terms) else Terms.number(value)
