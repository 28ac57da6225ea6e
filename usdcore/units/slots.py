"""May each head keep a number of dims of its own? Where they lie, or what is in the way.

They may where the modules that make them can be given gaps: whatever a host's code does afterwards, it does to zeros in
the place of what is gone. Value dims also leave the module that reads the attention's output, so on the way nothing
else may use them. Where in between every op treats the positions of a head alike, it does not matter which of them hold
a dim and which hold zeros: then what is left may move together.
"""

from __future__ import annotations

from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np

from usdcore.units.layers import axes
from usdcore.units.masks import sample_axis
from usdcore.units.rules import shape
from usdcore.units.types import MaskPoint, Side, Slots
from usdcore.units.writers import Maker, WriterFinder, is_elementwise

if TYPE_CHECKING:
    from usdcore.units.drafts import Draft
    from usdcore.units.execute import Executor
    from usdcore.units.labelling import Labelling
    from usdcore.units.layers import IntArray
    from usdcore.units.tally import Tally
    from usdcore.units.trace import Call, Op

    BoolArray = np.typing.NDArray[np.bool_]

MOVES = shape.TURNS | shape.RESHAPES | shape.SAME | {"ragged_place", "ragged_pack"}
PRODUCTS = frozenset({"matmul", "bmm", "mm", "baddbmm", "scaled_dot_product_attention"})
Found = tuple[Slots, tuple[MaskPoint, ...]]


def paid(flow: Labelling, drafts: list[Draft], kinds: frozenset[str]) -> frozenset[int]:
    """The ops that cost less when labels of some drafts go: those that make them with a weight, or read them (`kinds`).

    Between these, zeros are multiplied as any number is.
    """
    is_own = np.zeros(flow.num_labels, dtype=bool)
    for draft in drafts:
        is_own[draft.labels] = True
    return frozenset(use.op for use in flow.uses if use.kind in kinds and is_own[use.labels].any())


class SlotFinder:
    """Looks at one group of dims after another. Queries and keys (`is_read` false) leave the modules that make them
    only, values also the one that reads them.
    """

    def __init__(self, flow: Labelling, tally: Tally, executor: Executor, is_read: bool) -> None:
        self.flow = flow
        self.tally = tally
        self.is_read = is_read
        self.writers = WriterFinder(flow, tally, executor)

    def find(self, group: int) -> Found | str:
        """The places of a group's entries and where a factor acts on them where they are made, or the reason why it
        can't be pruned.
        """
        draft = self.tally.drafts[group]
        makers, readers = sorted(self.tally.makers[group]), self.tally.readers[group]
        if draft.rows is None or not makers:
            return "no projection makes its entries"
        if self.is_read and (len(makers) != 1 or len(readers) != 1):
            return f"{len(makers)} projections make the values and {len(readers)} read them, not one each"
        found = [self.writers.find(op, group) for op in makers]
        writers = [maker for maker in found if isinstance(maker, Maker)]
        for why in found:
            if isinstance(why, str):
                return why
        reader = self._reader(next(iter(readers))) if self.is_read else None
        if isinstance(reader, str):
            return reader
        moves = self._moves(draft, writers, reader)
        if isinstance(moves, str):
            return moves
        return self._slots(group, draft, writers, reader, moves)

    def _slots(self, group: int, draft: Draft, writers: list[Maker], reader: Call | None, moves: bool) -> Found | str:
        assert draft.rows is not None
        assert draft.row_parent is not None
        sides, masks = [], []
        left = np.ones(len(draft.rows), dtype=bool)
        for writer in writers:
            positions = self._positions(writer.output, writer.axis, draft.rows)
            here = (positions >= 0).all(axis=1) & left
            left &= ~here
            table = positions[here]
            entry_of = np.full(self.flow.shape(writer.output)[writer.axis], -1)
            entry_of[table] = self.tally.entries(group, draft.rows[here])
            made = self._positions(writer.output, writer.axis, draft.labels)
            is_known = np.zeros(len(entry_of) + 1, dtype=bool)
            is_known[table] = is_known[-1] = True
            if not is_known[made].all():
                return f"its entries are tied to other channels that {writer.path} makes"
            parents = draft.row_parent[here]
            sides.append(Side(writer.path, writer.tensor, writer.tensors, writer.axis, table, parents, writer.edit))
            rows = sample_axis(self.flow.shape(writer.output))
            masks.append(MaskPoint(writer.path, entry_of, writer.axis, "output", writer.edit, rows))
        if left.any():
            return "its entries do not lie along the channels of the modules that make them"
        entries = self.tally.entries(group, draft.rows)
        num_made = int((entries >= 0).sum())
        if num_made != len(draft.labels):
            return "its entries are tied to others, position by position"
        per_entry = num_made // max(draft.size, 1) or 1
        per_parent = int(np.bincount(draft.row_parent).max()) * draft.rows.shape[1] // per_entry
        if reader is None:
            return Slots(tuple(sides), (), moves and self._is_parallel(entries), per_parent), tuple(masks)
        axis = self._axis(reader.inputs[0], draft.rows)
        if axis is None:
            return f"its entries do not lie along the channels that {reader.path} reads"
        table = self._positions(reader.inputs[0], axis, draft.rows)
        weight = f"{reader.path}.weight"
        side = Side(reader.path, weight, frozenset({weight}), axis, table, draft.row_parent)
        return Slots(tuple(sides), (side,), moves, per_parent), ()

    def _is_parallel(self, entries: IntArray) -> bool:
        """Whether queries and keys have their entries in the same places, one in each: then they may move alike."""
        first, *others = np.split(entries, 2)
        return all(np.array_equal(first, other) for other in others) and len(np.unique(first[first >= 0])) == int(
            (first >= 0).sum()
        )

    def _reader(self, index: int) -> Call | str:
        """The call of the module that reads the values, and does nothing else with its input."""
        trace = self.flow.trace
        op = trace.ops[index]
        call, first = trace.calls[op.call], op
        before = trace.values[op.inputs[0]].producer
        if before >= 0 and trace.ops[before].name == "ragged_pack":
            first = trace.ops[before]
        where = self.flow.where(op)
        if trace.values[op.inputs[1]].tensor != f"{call.path}.weight" or not call.path:
            return f"{where} does not read its entries with the weight of a module of its own"
        if not call.inputs or call.inputs[0] != first.inputs[0]:
            return f"{where} reads its entries, but not as the input of a module"
        within = [o for o in self._consumers[call.inputs[0]] if call.first_op <= o.index < call.end_op]
        if within != [first] or self.tally.num_calls[call.path] > 1:
            return f"{call.path} reads its entries more than once"
        return call

    def _moves(self, draft: Draft, writers: list[Maker], reader: Call | None) -> bool | str:
        """Whether every op on the way only moves the entries, or treats the positions of a head alike; or what else it
        does with them.
        """
        flow, is_own = self.flow, np.zeros(self.flow.num_labels + 1, dtype=bool)  # the last one is for -1: no label
        is_own[draft.rows] = True
        todo, moves = [writer.output for writer in writers], True
        seen = set(todo)
        while todo:
            for op in self._consumers.get(todo.pop(), ()):
                if reader is not None and reader.first_op <= op.index < reader.end_op:
                    continue
                held = [v for v in op.outputs if self._holds(v, is_own)]
                if not (op.name in MOVES or self._is_even(op)):
                    if reader is not None and not held:
                        return f"{flow.where(op)} uses its entries too"
                    moves &= op.name in PRODUCTS and (bool(held) or self._is_contracted(op, is_own))
                todo += [v for v in held if v not in seen]
                seen.update(held)
        return moves

    def _is_contracted(self, op: Op, is_own: BoolArray) -> bool:
        """Whether a product meets queries with keys: both of its operands hold own labels."""
        return all(self._holds(v, is_own) for v in op.inputs[:2])

    def _is_even(self, op: Op) -> bool:
        """Whether an op does the same at every position: elementwise, with nothing but numbers beside its input."""
        return is_elementwise(op) and len(op.inputs) == 1 and not op.overwritten

    def _holds(self, value: int, is_own: BoolArray) -> bool:
        return any(is_own[own].any() for own in self.flow.compacts(self.flow.labels.get(value, ())))

    def _axis(self, value: int, rows: IntArray) -> int | None:
        """The axis of a value along which all labels of some rows lie."""
        ndim = len(self.flow.shape(value))
        for axis in (-1, 1):
            if axis < ndim and bool((self._positions(value, axis, rows) >= 0).all()):
                return axis
        return None

    def _positions(self, value: int, axis: int, labels: IntArray) -> IntArray:
        """Where along an axis of a value each of some labels lies; -1 where it does not."""
        found = np.full(labels.shape, -1)
        layers = self.flow.labels.get(value, ())
        for layer, own in zip(layers, self.flow.compacts(layers), strict=True):
            if axes(layer) == {axis % layer.ndim} and (is_label := own.ravel() >= 0).any():
                row = own.ravel()[is_label]
                low = row.min()
                position = np.full(row.max() - low + 2, -1)  # the last one is for labels outside
                position[row - low] = np.flatnonzero(is_label)
                is_inside = (labels >= low) & (labels - low < len(position) - 1)
                here = position[np.where(is_inside, labels - low, -1)]
                found = np.where(here >= 0, here, found)
        return found

    @cached_property
    def _consumers(self) -> dict[int, list[Op]]:
        found: dict[int, list[Op]] = {}
        for op in self.flow.trace.ops:
            for value in dict.fromkeys(op.inputs):
                found.setdefault(value, []).append(op)
        return found
