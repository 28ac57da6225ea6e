"""The module that makes some channels and could be given gaps: one that runs, unchanged, with fewer of them.

It is the outermost module around a projection in which every op treats each channel alone (a BatchNorm, an activation):
the zeros are placed after all of that. Where a weight is used without a call of its module, it is the result of that
call in the host's code.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np
import torch

from usdcore import rewrite
from usdcore.rewrite import Edit
from usdcore.units.execute import Blank
from usdcore.units.labels import UNTAGGED
from usdcore.units.layers import axes, compact, distinct
from usdcore.units.removal import Removal
from usdcore.units.rules import shape
from usdcore.units.sizes import evaluate
from usdcore.units.trace import refill

if TYPE_CHECKING:
    from usdcore.units.execute import Executor
    from usdcore.units.labelling import Labelling
    from usdcore.units.layers import IntArray
    from usdcore.units.tally import Tally
    from usdcore.units.trace import Call, Op

EACH = shape.TURNS | shape.RESHAPES | shape.SAME | {"batch_norm", "ragged_place"}


@dataclass(frozen=True, slots=True)
class Maker:
    """A module whose output value has the channels along `axis`, the weight that they are rows of, and all tensors that
    have a position for each. With `edit` the module is a passage (see `usdcore.passages`).
    """

    path: str
    tensor: str
    tensors: frozenset[str]
    output: int
    axis: int
    edit: Edit | None = None


def is_elementwise(op: Op) -> bool:
    """Whether an op treats each position alone."""
    return torch.Tag.pointwise in op.func.tags or op.name in UNTAGGED


class WriterFinder:
    """Finds the modules that make channels."""

    def __init__(self, flow: Labelling, tally: Tally, executor: Executor) -> None:
        self.flow = flow
        self.tally = tally
        self.executor = executor

    def find(self, index: int, group: int) -> Maker | str:
        """The module around op `index`, a projection that makes entries of a group; or why none can be given gaps."""
        trace = self.flow.trace
        op = trace.ops[index]
        labels = next(use.labels for use in self.flow.flat.by_op[index] if use.kind == "makes")
        call, found = trace.calls[op.call], None
        while call.path:
            maker = self._maker(call, op, labels, group)
            if maker is None:
                break
            if self.tally.num_calls[call.path] > 1:
                return f"{call.path} runs more than once"
            found, call = maker, trace.calls[call.parent]
        return found or self._passage(op, labels, group)

    def _maker(self, call: Call, op: Op, labels: IntArray, group: int) -> Maker | None:
        trace = self.flow.trace
        tensor = trace.values[op.inputs[1]].tensor
        if call.output is None or tensor is None or not tensor.startswith(f"{call.path}."):
            return None
        producer = trace.ops[trace.values[call.output].producer]
        own = producer.inputs[0] if producer.name == "ragged_place" else call.output
        axis = self._axis(own, labels)
        if axis is None:
            return None
        inside = [o for o in trace.ops[call.first_op : call.end_op] if self._touches(o, labels)]
        if not all(o is op or o.name in EACH or is_elementwise(o) for o in inside):
            return None
        if any(o is not op and o.name != "ragged_place" for o in inside) and not self._runs_narrow(inside, group):
            return None
        return Maker(call.path, tensor, self._tensors(inside), call.output, axis)

    def _passage(self, op: Op, labels: IntArray, group: int) -> Maker | str:
        """The result of a call in the host's code that uses a bare weight."""
        trace = self.flow.trace
        tensor, axis, owner = trace.values[op.inputs[1]].tensor, self._axis(op.outputs[0], labels), trace.path(op)
        why = f"{self.flow.where(op)} is not the work of a module of its own, which could be given gaps"
        if tensor is None or axis is None:
            return why
        kind, place = trace.classes[owner], op.places[0] if op.places else None
        function = None if place is None else rewrite.method_of(kind, place.code)
        if place is None or place.span is None or function is None:
            return f"{why}, nor in a method of one"
        if (problem := rewrite.why_not(kind, function)) is not None:
            return f"{why}, and {problem}"
        if not rewrite.is_call(kind, function, place.span):
            return f"{why}, and not written as a call"
        if any(o is not op and o.places[:1] == op.places[:1] and trace.path(o) == owner for o in trace.ops):
            return f"{why}, and runs more than once"
        if not self._runs_narrow([*self._feeding(op), op], group):
            return f"{why}, and what it is given would not shrink with its entries"
        edit = Edit(function, place.span, "pass")
        path = f"{owner}.{rewrite.child_of(edit)}".lstrip(".")
        opened = next((call for call in trace.calls if call.path == path), None)
        output = op.outputs[0] if opened is None or opened.output is None else opened.output
        return Maker(path, tensor, self._tensors([op]), output, axis, edit)

    def _feeding(self, op: Op) -> list[Op]:
        """The ops that compute what a projection is given beside its data: a bias put together from parts."""
        trace, found = self.flow.trace, []
        todo = [v for v in op.inputs[1:] if not trace.values[v].is_data]
        while todo:
            producer = trace.values[todo.pop()].producer
            if producer >= 0:
                found.append(trace.ops[producer])
                todo += found[-1].inputs
        return found

    def _tensors(self, ops: list[Op]) -> frozenset[str]:
        """The parameters and buffers that have entries in some ops."""
        flow, by_op = self.flow, self.flow.flat.by_op
        slots = [use.slots for op in ops for use in by_op.get(op.index, ())]
        places = distinct(np.searchsorted(self._bases, np.concatenate(slots), side="right") - 1)
        return frozenset(str(flow.trace.values[flow.slot_axes[place][1]].tensor) for place in places)

    @cached_property
    def _bases(self) -> IntArray:
        return np.array([base for base, _, _ in self.flow.slot_axes], dtype=np.int64)

    def _axis(self, value: int, labels: IntArray) -> int | None:
        """The axis along which just these labels lie, in order: -1, or 1 of a convolution's output."""
        for layer in self.flow.labels.get(value, ()):
            own = axes(layer)
            if len(own) == 1 and np.array_equal(compact(layer).ravel(), labels):
                (axis,) = own
                return -1 if axis == layer.ndim - 1 else axis if axis == 1 else None
        return None

    def _touches(self, op: Op, labels: IntArray) -> bool:
        low, high = labels[0], labels[-1]
        layers = [layer for value in op.outputs for layer in self.flow.labels.get(value, ())]
        return any(bool(((own >= low) & (own <= high)).any()) for own in map(compact, layers))

    def _runs_narrow(self, ops: list[Op], group: int) -> bool:
        """Whether ops, as the host wrote them, give smaller outputs when the first of the group's entries goes."""
        removed = np.arange(self.tally.num_entries) == self.tally.offsets[group]
        removal = Removal(self.tally, removed)
        return all(self._rerun(op, removal) for op in ops if op.name != "ragged_place")

    def _rerun(self, op: Op, removal: Removal) -> bool:
        trace, positions = self.flow.trace, iter(range(1 << 30))

        def blank(value: int) -> Blank:
            return Blank(removal.shape(value), trace.values[value].dtype)

        def number(now: int) -> int:
            expr = op.sizes.get(next(positions))
            return now if expr is None else evaluate(expr, removal.leaf)

        if op.is_part:
            whole = next((w for w in trace.wholes if op.outputs[0] in w.outputs), None)
            if whole is None:
                return True  # its result is a part's of an op that is run as a whole
            return self._rerun(whole, removal)
        args, kwargs = refill((op.args, op.kwargs), blank, number)
        return self.executor.shapes(op.func, args, kwargs) == [removal.shape(v) for v in op.outputs]
