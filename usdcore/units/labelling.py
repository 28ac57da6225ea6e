"""What the label pass writes down: the labels of every value, and where they meet parameters or each other.

A **label** is one output channel of one projection. A **slot** is one position along one axis of one parameter or
buffer; slots travel through views of the parameter as labels travel through activations. A **coarse** label stands for
a row of labels that a product consumed: one per head appears on the attention logits.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

import numpy as np
import torch

from usdcore.units.flat import Flat
from usdcore.units.layers import IntArray, Layers, along, axes, compact, distinct, distinct_rows, rows

if TYPE_CHECKING:
    from torch import Tensor

    from usdcore.units.graph import Ancestry, Residual
    from usdcore.units.trace import Op, Trace


@dataclass(frozen=True, slots=True, eq=False)
class Use:
    """An op in which slots[i] makes, reads or scales label labels[i]."""

    op: int
    kind: Literal["makes", "reads", "aligns"]
    slots: IntArray
    labels: IntArray


@dataclass(frozen=True, slots=True, eq=False)
class Share:
    """MACs of an op that go when these labels (or slots) go: `macs` for each element."""

    op: int
    labels: IntArray
    macs: float


@dataclass(frozen=True, slots=True, eq=False)
class Norm:
    """An op that treats what lies along `dims` of an activation as one; `labels` are its compact labels."""

    op: int
    labels: IntArray
    dims: tuple[int, ...]
    how: str = "are normalised together by"


@dataclass(frozen=True, slots=True, eq=False)
class Taint:
    """Labels that can't be removed. `stream`: they join a residual stream; `output`: the model's output shows them."""

    labels: IntArray
    kind: Literal["stream", "output", "unknown"]
    reason: str


@dataclass(frozen=True, slots=True, eq=False)
class Core:
    """An attention core: for each head its labels, [H, d] each, or the reason why there are none.

    `op` makes the output. `involved` are all labels that reach the core, `v_shape` is [..., M, e]. `logits` [H, n] are
    other labels of the heads: the coarse ones, and those of projections that mix heads. `dims` says why the dims inside
    the heads can't be pruned, where the core does not keep them apart. Heads that share k and v have None for them.
    """

    op: int
    involved: IntArray
    v_shape: tuple[int, ...]
    q: IntArray | None = None
    k: IntArray | None = None
    v: IntArray | None = None
    logits: IntArray | None = None
    reason: str | None = None
    dims: str | None = None


@dataclass(slots=True)
class Labelling:
    """The state of the label pass, and what it found. `labels` and `slots` have the layers of each value.

    `probabilities` are the values that come from a softmax, with the labels that went into it. `padding` are labels of
    positions that no projection makes: zeros in the place of channels that were pruned. `mixed` are the labels that a
    projection read, by the first label that it made. `slot_shares` are of ops on parameters alone.
    """

    trace: Trace
    ancestry: Ancestry
    residuals: dict[int, Residual]
    macs: list[int]
    labels: dict[int, Layers] = field(default_factory=dict)
    uses: list[Use] = field(default_factory=list)
    shares: list[Share] = field(default_factory=list)
    slot_shares: list[Share] = field(default_factory=list)
    norms: list[Norm] = field(default_factory=list)
    taints: list[Taint] = field(default_factory=list)
    cores: list[Core] = field(default_factory=list)
    ties: list[tuple[IntArray, IntArray]] = field(default_factory=list)
    coarse: list[tuple[IntArray, IntArray]] = field(default_factory=list)
    probabilities: dict[int, IntArray] = field(default_factory=dict)
    padding: list[IntArray] = field(default_factory=list)
    mixed: dict[int, IntArray] = field(default_factory=dict)
    num_labels: int = 0
    num_slots: int = 0
    slot_axes: list[tuple[int, int, int]] = field(default_factory=list)
    _slots: dict[int, Layers] = field(default_factory=dict)
    _single: dict[tuple[int, int], IntArray] = field(default_factory=dict)
    _compacts: dict[int, list[IntArray]] = field(default_factory=dict)
    _flat: Flat | None = None

    def shape(self, value: int) -> tuple[int, ...]:
        """The recorded shape of a value."""
        return self.trace.values[value].shape

    def where(self, op: Op) -> str:
        """An op in words, for a reason."""
        return f"{op.name} in {self.trace.path(op) or 'the model'} ({op.source})" if op.source else f"{op.name}"

    @property
    def flat(self) -> Flat:
        """The uses and shares of the finished pass, side by side."""
        if self._flat is None:
            self._flat = Flat.of(self)
        return self._flat

    def fresh(self, number: int) -> int:
        """The first of `number` new labels."""
        self.num_labels += number
        return self.num_labels - number

    def slots(self, value: int) -> Layers:
        """The slot layers of a value that is a parameter, a buffer, or a view of one."""
        found = self._slots.get(value)
        if found is not None:
            return found
        if self.trace.values[value].tensor is None:
            return ()
        shape, made = self.shape(value), []
        for axis, size in enumerate(shape):
            if size > 1:
                self.slot_axes.append((self.num_slots, value, axis))
                made.append(along(self.num_slots, shape, axis))
                self.num_slots += size
        self._slots[value] = tuple(made)
        return self._slots[value]

    def known_slots(self, value: int) -> Layers:
        """The slot layers that the label pass met; it met no others."""
        return self._slots.get(value, ())

    def compacts(self, layers: Layers) -> list[IntArray]:
        """The compact form of the layers of a value that is finished."""
        found = self._compacts.get(id(layers))
        if found is None:
            found = self._compacts[id(layers)] = [compact(layer) for layer in layers]
        return found

    def set_slots(self, value: int, layers: Layers) -> None:
        """Give a view of a parameter its slots."""
        if layers:
            self._slots[value] = layers

    def slot_row(self, value: int, axis: int) -> IntArray | None:
        """The slots along an axis of a parameter or of a view of one; None where the value is computed."""
        if self.trace.values[value].tensor is not None and self.shape(value)[axis] == 1:
            if (value, axis) not in self._single:
                self._single[value, axis] = np.array([self.num_slots])
                self.slot_axes.append((self.num_slots, value, axis))
                self.num_slots += 1
            return self._single[value, axis]
        for layer in self.slots(value):
            if axes(layer) == {axis}:
                return compact(layer).ravel()
        return None

    def taint(self, layers: Layers, kind: Literal["stream", "output", "unknown"], reason: str) -> None:
        """Mark all labels of some layers."""
        for layer in layers:
            labels = distinct(compact(layer))
            self.taints.append(Taint(labels[labels >= 0], kind, reason))

    def below(self, layers: Layers) -> IntArray:
        """All labels in some layers, and those that their coarse labels stand for."""
        found = [distinct(compact(layer)) for layer in layers]
        labels = distinct(np.concatenate(found)) if found else np.zeros(0, np.int64)
        for coarse, table in reversed(self.coarse):
            own = labels[(labels >= coarse[0]) & (labels <= coarse[-1])]
            if len(own):
                labels = distinct(np.concatenate([labels, table[own - coarse[0]].ravel()]))
        return labels[labels >= 0]

    def children(self, labels: IntArray) -> IntArray | None:
        """The rows that coarse labels [H] stand for, [H, n]; None where one of them is no coarse label."""
        found: dict[int, IntArray] = {}
        for coarse, table in reversed(self.coarse):
            for label in labels[(labels >= coarse[0]) & (labels <= coarse[-1])].tolist():
                found[label] = table[label - coarse[0]]
            if len(found) == len(labels):
                break
        rows = [found[label] for label in labels.tolist() if label in found]
        return np.stack(rows) if len(rows) == len(labels) and len({len(row) for row in rows}) == 1 else None

    def coarsen(self, layer: Tensor, axis: int, shape: tuple[int, ...]) -> Tensor | None:
        """One label for each different row along `axis`; a layer of the same axes with that axis of size 1.

        `shape` is the layer's shape with size 1 at `axis`. None where all rows are the same.
        """
        table, others = rows(layer, axis)
        if len(table) == 1:
            return None
        children, index = distinct_rows(table)
        base = self.fresh(len(children))
        self.coarse.append((np.arange(base, base + len(children)), children))
        coarse = np.expand_dims((base + index).reshape(others), axis)
        return torch.from_numpy(np.ascontiguousarray(coarse)).expand(shape)
