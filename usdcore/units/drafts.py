"""Groups in the making: which labels belong to which entry, before parameters and costs are known."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from usdcore.units.layers import IntArray

if TYPE_CHECKING:
    from usdcore.units.labelling import Labelling


@dataclass(slots=True, eq=False)
class Draft:
    """A group's labels: `entry_of` has one element per label of the whole model, -1 where it is not the group's.

    `reasons` collects why the group can't be pruned; `is_ragged` marks a group inside another, whose entries do not
    make whole rows and columns of the activations.
    """

    kind: str
    size: int
    entry_of: IntArray
    reasons: list[str] = field(default_factory=list)
    parent_of: IntArray | None = None

    def labels(self) -> IntArray:
        """The labels of the group."""
        return np.flatnonzero(self.entry_of >= 0)


@dataclass(slots=True, eq=False)
class UnitDraft:
    """A unit's groups, the first of which is the one that its costs and its place are read from."""

    groups: list[Draft]
    core_op: int | None = None
    shape: tuple[int, int, int] = (0, 0, 0)


def components(flow: Labelling) -> IntArray:
    """For each label, the smallest label that it is tied to: tied labels go together."""
    component = np.arange(flow.num_labels)
    if not flow.ties:
        return component
    a = np.concatenate([tie[0] for tie in flow.ties])
    b = np.concatenate([tie[1] for tie in flow.ties])
    valid = (a >= 0) & (b >= 0)
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


def assign(component: IntArray, rows: list[IntArray]) -> tuple[IntArray, bool]:
    """The entry of every label when row i of each table [n, ...] makes entry i; False where two entries are tied."""
    entry_of = np.full(len(component), -1)
    is_clean = True
    for table in rows:
        for entry, row in enumerate(table):
            own = component[row]
            is_clean &= bool(((entry_of[own] == -1) | (entry_of[own] == entry)).all())
            entry_of[own] = entry
    return entry_of[component], is_clean
