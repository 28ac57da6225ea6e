"""May each head keep a number of value dims of its own? Where they lie, or what is in the way.

They may where one plain linear module makes the values, one reads the attention's output, and in between every op
treats the positions of a head alike: then it does not matter which of them hold a dim and which hold zeros.
"""

from __future__ import annotations

from collections import Counter
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np
import torch

from usdcore.units.layers import axes, compact
from usdcore.units.rules import shape
from usdcore.units.types import Slots

if TYPE_CHECKING:
    from usdcore.units.labelling import Labelling
    from usdcore.units.layers import IntArray
    from usdcore.units.tally import Tally
    from usdcore.units.trace import Call, Op
    from usdcore.units.types import Member

    BoolArray = np.typing.NDArray[np.bool_]

MOVES = shape.TURNS | shape.RESHAPES | shape.SAME | {"ragged_place", "ragged_pack"}


class SlotFinder:
    """Looks at the value dims of one attention unit after another."""

    def __init__(self, flow: Labelling, tally: Tally) -> None:
        self.flow = flow
        self.tally = tally

    def find(self, group: int, core_op: int, members: tuple[Member, ...]) -> Slots | str:
        """The places of a group's entries, or the reason why it can't be pruned."""
        table = self.tally.drafts[group].table
        makers, readers = self.tally.makers[group], self.tally.readers[group]
        if table is None or len(makers) != 1 or len(readers) != 1:
            return f"{len(makers)} projections make the values and {len(readers)} read them, not one each"
        writer, reader = (self._linear(next(iter(ops))) for ops in (makers, readers))
        if isinstance(writer, str) or isinstance(reader, str):
            return writer if isinstance(writer, str) else str(reader)
        odd = self._odd_member(members, writer, reader) or self._odd_op(table, core_op, writer, reader)
        if odd is not None:
            return odd
        assert writer.output is not None
        written, read = self._positions(writer.output, table), self._positions(reader.inputs[0], table)
        if written is None or read is None:
            return f"its entries do not lie along the channels between {writer.path} and {reader.path}"
        return Slots(writer.path, reader.path, written, read)

    def _linear(self, index: int) -> Call | str:
        """The call of a plain linear module that an op is the whole of."""
        trace = self.flow.trace
        op = trace.ops[index]
        call = trace.calls[op.call]
        if op.name != "linear" or call.path not in trace.linears:
            return f"{self.flow.where(op)} is not the work of a plain nn.Linear module, which could be given gaps"
        if trace.values[op.inputs[1]].tensor != f"{call.path}.weight":
            return f"{call.path} has not got a weight of its own"
        if sum(other.path == call.path for other in trace.calls) > 1:
            return f"{call.path} runs more than once"
        return call

    def _odd_member(self, members: tuple[Member, ...], writer: Call, reader: Call) -> str | None:
        """Whatever is not exactly one row of the one weight and one column of the other for each entry."""
        expected = {(f"{writer.path}.weight", 0), (f"{writer.path}.bias", 0), (f"{reader.path}.weight", 1)}
        for member in members:
            if (member.tensor, member.axis) not in expected:
                return f"{member.tensor} has a position for each entry too"
            if max(Counter(member.entry_of[member.entry_of >= 0].tolist()).values(), default=0) > 1:
                return f"{member.tensor} has several positions for one entry"
        return None

    def _odd_op(self, table: IntArray, core_op: int, writer: Call, reader: Call) -> str | None:
        """The first op on the way that does more than move the entries, or tells the positions of a head apart."""
        flow, is_own = self.flow, np.zeros(self.flow.num_labels + 1, dtype=bool)  # the last one is for -1: no label
        is_own[table] = True
        assert writer.output is not None
        todo, seen = [writer.output], {writer.output}
        while todo:
            value = todo.pop()
            for op in self._consumers.get(value, ()):
                if reader.first_op <= op.index < reader.end_op:
                    continue
                if not (op.name in MOVES or op.index == core_op or self._is_even(op)):
                    return f"{flow.where(op)} may tell apart the positions of a head"
                held = [v for v in op.outputs if v not in seen and self._holds(v, is_own)]
                todo += held
                seen.update(held)
        return None

    def _is_even(self, op: Op) -> bool:
        """Whether an op does the same at every position: elementwise, with nothing but numbers beside its input."""
        return torch.Tag.pointwise in op.func.tags and len(op.inputs) == 1 and not op.overwritten

    def _holds(self, value: int, is_own: BoolArray) -> bool:
        return any(bool(is_own[compact(layer)].any()) for layer in self.flow.labels.get(value, ()))

    def _positions(self, value: int, table: IntArray) -> IntArray | None:
        """Where along the last axis of a value each label of a table lies."""
        for layer in self.flow.labels.get(value, ()):
            if axes(layer) == {layer.ndim - 1}:
                position = np.full(self.flow.num_labels, -1)
                row = compact(layer).ravel()
                position[row[row >= 0]] = np.flatnonzero(row >= 0)
                found: IntArray = position[table]
                if (found >= 0).all():
                    return found
        return None

    @cached_property
    def _consumers(self) -> dict[int, list[Op]]:
        found: dict[int, list[Op]] = {}
        for op in self.flow.trace.ops:
            for value in op.inputs:
                found.setdefault(value, []).append(op)
        return found
