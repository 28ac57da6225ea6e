"""The model with some entries of every group removed: the shape that every activation and parameter then has."""

from __future__ import annotations

from collections import defaultdict
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from usdcore.units.sizes import Expr
    from usdcore.units.tally import Tally
    from usdcore.units.trace import Op

Shape = tuple[int, ...]
BoolArray = np.typing.NDArray[np.bool_]


class Removal:
    """What the labels say when the global entries `removed` go.

    `attributes` are the values that the host's int attributes take then, `reasons` what is in the way, by group.
    """

    def __init__(self, tally: Tally, removed: BoolArray) -> None:
        self.tally = tally
        self.flow = tally.flow
        self.trace = tally.flow.trace
        self.counts = np.bincount(tally.owner[removed], minlength=len(tally.drafts))
        self.attributes: dict[Expr, int] = {}
        self.reasons: dict[int, list[str]] = defaultdict(list)
        gone = np.append(removed, False)  # the last one is for -1: no entry, never gone
        self._labels = np.append(gone[tally.label_entry], False)
        self._slots = np.append(gone[np.maximum(tally.slot_entry, -1)], False)
        self._kept: dict[int, dict[int, BoolArray]] = {}
        self._known: dict[int, tuple[dict[int, BoolArray], bool]] = {}
        self._shapes: dict[int, Shape] = {}

    def kept(self, value: int) -> dict[int, BoolArray]:
        """For each axis that shrinks, which of its positions stay."""
        found = self._kept.get(value)
        if found is None:
            layers = self.flow.labels.get(value)
            if layers:
                if id(layers) not in self._known:  # many values have the labels of another
                    self._known[id(layers)] = _kept([self._labels[own] for own in self.flow.compacts(layers)])
                found, is_even = self._known[id(layers)]
            else:
                slots = self.flow.compacts(self.flow.known_slots(value))
                found, is_even = _kept([self._slots[own] for own in slots])
            if not is_even:
                self._blame(value)
            self._kept[value] = found
        return found

    def shape(self, value: int) -> Shape:
        """The shape that a value has after the removal."""
        found = self._shapes.get(value)
        if found is None:
            kept = self.kept(value)
            found = self.trace.values[value].shape
            if kept:
                found = tuple([int(np.count_nonzero(kept[i])) if i in kept else n for i, n in enumerate(found)])
            self._shapes[value] = found
        return found

    def groups(self, op: Op) -> list[int]:
        """The groups whose entries an op's inputs and outputs hold."""
        found: set[int] = set()
        for value in (*op.inputs, *op.outputs):
            for layers, entry_of in (
                (self.flow.labels.get(value, ()), self.tally.label_entry),
                (self.flow.known_slots(value), self.tally.slot_entry),
            ):
                for own in self.flow.compacts(layers):
                    found.update(self.tally.groups_of(entry_of[own[own >= 0]]))
        return sorted(found)

    def leaf(self, leaf: Expr) -> int:
        """The value of an attribute or of a dim of a shape after the removal."""
        if leaf[0] == "dim":
            return self.shape(leaf[1])[leaf[2]]
        return self.attributes.get(leaf, self.was(leaf))

    def was(self, leaf: Expr) -> int:
        """The value of an attribute or of a dim of a shape as recorded."""
        return self.trace.values[leaf[1]].shape[leaf[2]] if leaf[0] == "dim" else self.trace.attributes[leaf]

    def _blame(self, value: int) -> None:
        producer = self.trace.values[value].producer
        if producer >= 0:
            op = self.trace.ops[producer]
            for group in self.groups(op):
                self.reasons[group].append(f"without some entries, {self.flow.where(op)} has no rectangular output")


def _kept(layers: list[BoolArray]) -> tuple[dict[int, BoolArray], bool]:
    """Which positions stay on each axis that shrinks, where layers say what goes; False where that is no rectangle."""
    found: dict[int, BoolArray] = {}
    is_even = True
    for gone in layers:
        num_gone = np.count_nonzero(gone)
        if gone.size == 1 or not num_gone:  # the last channel never goes: a plan that says so is refused
            continue
        stays = ~gone
        if gone.size in gone.shape:  # labels along one axis
            _narrow(found, gone.shape.index(gone.size), stays.ravel())
            continue
        rectangle = 1
        for axis, n in enumerate(gone.shape):
            if n > 1:
                along: BoolArray = np.any(stays, axis=tuple(i for i in range(gone.ndim) if i != axis))
                rectangle *= int(along.sum())
                if not along.all():
                    _narrow(found, axis, along)
        is_even &= rectangle == gone.size - num_gone
    return found, is_even


def _narrow(into: dict[int, BoolArray], axis: int, stays: BoolArray) -> None:
    into[axis] = into[axis] & stays if axis in into else stays
