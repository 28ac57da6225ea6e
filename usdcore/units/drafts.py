"""Groups in the making: which labels belong to which entry, before parameters and costs are known."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from usdcore.units.labelling import Labelling
    from usdcore.units.layers import IntArray


@dataclass(slots=True, eq=False)
class Draft:
    """A group's labels and the entry of each. `reasons` collects why the group can't be pruned.

    For a nested group, `rows` [rows, slots] are the labels of all places, zeros' included, of each part (queries, keys,
    values) of the parent entry `row_parent`.
    """

    kind: str
    size: int
    labels: IntArray
    entries: IntArray
    reasons: list[str] = field(default_factory=list)
    parent_of: IntArray | None = None
    rows: IntArray | None = None
    row_parent: IntArray | None = None


@dataclass(slots=True, eq=False)
class UnitDraft:
    """A unit's groups, the first of which is the one that its costs and its place are read from.

    For attention, `core_op` makes the core's output, and `shape` is (heads, q and k width, v width of a head).
    """

    groups: list[Draft]
    core_op: int | None = None
    shape: tuple[int, int, int] = (0, 0, 0)


class Components:
    """For each label, `of`: the smallest label that it is tied to. Tied labels go together."""

    def __init__(self, of: IntArray) -> None:
        self.of = of

    @cached_property
    def _order(self) -> tuple[IntArray, IntArray]:
        order = np.argsort(self.of, kind="stable")
        return order, self.of[order]

    def between(self, low: int, high: int) -> IntArray:
        """The labels that are tied to a label from `low` to `high`, in order."""
        order, of = self._order
        first, end = np.searchsorted(of, (low, high + 1))
        return np.sort(order[first:end])


def components(flow: Labelling, is_fine: bool = False) -> Components:
    """The components of a finished label pass.

    `is_fine` leaves out ties with coarse labels: a factor for each head ties all of its dims to it, not to each other.
    """
    component = np.arange(flow.num_labels)
    if not flow.ties:
        return Components(component)
    a = np.concatenate([tie[0] for tie in flow.ties])
    b = np.concatenate([tie[1] for tie in flow.ties])
    is_coarse = np.zeros(flow.num_labels + 1, dtype=bool)
    for labels, _ in flow.coarse if is_fine else ():
        is_coarse[labels] = True
    valid = (a >= 0) & (b >= 0) & ~is_coarse[a] & ~is_coarse[b]
    a, b = a[valid], b[valid]
    while True:
        low = np.minimum(component[a], component[b])
        after = component.copy()
        np.minimum.at(after, a, low)
        np.minimum.at(after, b, low)
        np.minimum.at(after, component[a], low)
        np.minimum.at(after, component[b], low)
        after = after[after]
        if np.array_equal(after, component):
            return Components(component)
        component = after


def assign(components: Components, rows: list[IntArray]) -> tuple[IntArray, IntArray, bool]:
    """Labels and their entries, when row i of each table [n, ...] makes entry i; False where two entries are tied."""
    tables = [components.of[table] for table in rows if table.size]
    if not tables:
        return np.zeros(0, np.int64), np.zeros(0, np.int64), True
    low, high = min(int(own.min()) for own in tables), max(int(own.max()) for own in tables)
    entry_of, is_clean = np.full(high - low + 1, -1), True
    for own in tables:
        places, entries = own - low, np.arange(len(own))[:, None]
        before = entry_of[places]
        is_clean &= bool(((before == -1) | (before == entries)).all())
        entry_of[places] = entries
        is_clean &= bool((entry_of[places] == entries).all())
    labels = components.between(low, high)
    found = entry_of[components.of[labels] - low]
    is_own = found >= 0
    return labels[is_own], found[is_own], is_clean
