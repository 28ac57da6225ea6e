"""The model with some entries of every group removed: the shape that every activation and parameter then has."""

from __future__ import annotations

from collections import defaultdict
from typing import TYPE_CHECKING

import numpy as np

from usdcore.units.layers import compact

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
        self._shapes: dict[int, Shape] = {}

    def kept(self, value: int) -> dict[int, BoolArray]:
        """For each axis that shrinks, which of its positions stay."""
        found = self._kept.get(value)
        if found is None:
            found = {}
            layers = self.flow.labels.get(value)
            gone = self._labels if layers else self._slots
            for layer in layers or self.flow.known_slots(value):
                self._shrink(value, gone[compact(layer)], found)
            self._kept[value] = found
        return found

    def shape(self, value: int) -> Shape:
        """The shape that a value has after the removal."""
        found = self._shapes.get(value)
        if found is None:
            kept = self.kept(value)
            found = self.trace.values[value].shape
            if kept:
                found = tuple(int(kept[i].sum()) if i in kept else n for i, n in enumerate(found))
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
                for layer in layers:
                    own = compact(layer).ravel()
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

    def _shrink(self, value: int, gone: BoolArray, into: dict[int, BoolArray]) -> None:
        if not gone.any() or gone.size == 1:  # the last channel never goes: a plan that says so is refused
            return
        stays = ~gone
        if gone.size in gone.shape:  # labels along one axis
            _narrow(into, gone.shape.index(gone.size), stays.ravel())
            return
        rectangle = 1
        for axis, n in enumerate(gone.shape):
            if n > 1:
                along: BoolArray = np.any(stays, axis=tuple(i for i in range(gone.ndim) if i != axis))
                rectangle *= int(along.sum())
                if not along.all():
                    _narrow(into, axis, along)
        producer = self.trace.values[value].producer
        if rectangle != stays.sum() and producer >= 0:
            op = self.trace.ops[producer]
            for group in self.groups(op):
                self.reasons[group].append(f"without some entries, {self.flow.where(op)} has no rectangular output")


def _narrow(into: dict[int, BoolArray], axis: int, stays: BoolArray) -> None:
    into[axis] = into[axis] & stays if axis in into else stays
