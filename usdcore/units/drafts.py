"""Groups in the making: which labels belong to which entry, before parameters and costs are known."""

from __future__ import annotations

from dataclasses import dataclass, field
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


def components(flow: Labelling, is_fine: bool = False) -> IntArray:
    """For each label, the smallest label that it is tied to: tied labels go together.

    `is_fine` leaves out ties with coarse labels: a factor for each head ties all of its dims to it, not to each other.
    """
    component = np.arange(flow.num_labels)
    if not flow.ties:
        return component
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
            return component
        component = after


def assign(component: IntArray, rows: list[IntArray]) -> tuple[IntArray, IntArray, bool]:
    """Labels and their entries, when row i of each table [n, ...] makes entry i; False where two entries are tied."""
    entry_of = np.full(len(component), -1)
    is_clean = True
    for table in rows:
        own, entries = component[table], np.arange(len(table))[:, None]
        is_clean &= bool(((entry_of[own] == -1) | (entry_of[own] == entries)).all())
        entry_of[own] = entries
        is_clean &= bool((entry_of[own] == entries).all())
    entry_of = entry_of[component]
    labels = np.flatnonzero(entry_of >= 0)
    return labels, entry_of[labels], is_clean
