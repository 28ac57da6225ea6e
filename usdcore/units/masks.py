"""Where a factor on a group's entries acts: at the input of every product that reads them.

That is a module's input; where a product with a bare weight reads them, the result of the call that it is given.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

import numpy as np

from usdcore import rewrite
from usdcore.rewrite import Edit
from usdcore.units.layers import compact, lies_along
from usdcore.units.metacopy import BATCH
from usdcore.units.types import MaskPoint

if TYPE_CHECKING:
    from usdcore.units.labelling import Labelling
    from usdcore.units.tally import Tally
    from usdcore.units.trace import Op


def mask_points(flow: Labelling, tally: Tally, group: int) -> tuple[MaskPoint, ...] | str:
    """The modules that read the entries, in order of execution; or why a factor can't act on all of them."""
    found: dict[str, MaskPoint] = {}
    for reader in sorted(tally.readers[group]):
        point = _point(flow, tally, group, flow.trace.ops[reader])
        if isinstance(point, str):
            return point
        found[point.module] = point
    return tuple(found.values()) or "no projection reads its entries"


def _point(flow: Labelling, tally: Tally, group: int, op: Op) -> MaskPoint | str:
    trace = flow.trace
    axis = 1 if op.name.startswith("conv") else len(flow.shape(op.inputs[0])) - 1
    call = trace.calls[op.call]
    before = trace.values[op.inputs[0]].producer
    if before >= 0 and trace.ops[before].name == "ragged_pack":
        op = trace.ops[before]  # a part of the reading module
    edit: Edit | None = None
    is_input = bool(call.path) and bool(call.inputs) and call.inputs[0] == op.inputs[0]
    if is_input:
        path = call.path
    else:
        found = _given(flow, op)
        if found is None:
            return f"{flow.where(op)} reads its entries, but not as the input of a module"
        path, edit = found
        call = trace.calls[trace.ops[trace.values[op.inputs[0]].producer].call]
    if tally.num_calls[call.path] > 1:
        return f"{call.path} reads its entries and runs more than once"
    shape = flow.shape(op.inputs[0])
    entry_of = np.full(shape[axis], -1)
    for layer in flow.labels.get(op.inputs[0], ()):
        if lies_along(layer, axis):
            entries = tally.entries(group, compact(layer).ravel())
            entry_of = np.where(entry_of < 0, entries, entry_of)
    if (entry_of < 0).all():
        return f"{flow.where(op)} reads its entries, but not along one axis of its input"
    side: Literal["input", "output"] = "input" if is_input else "output"
    return MaskPoint(path, entry_of, -1 if axis == len(shape) - 1 else axis, side, edit, sample_axis(shape))


def sample_axis(shape: tuple[int, ...]) -> int | None:
    """The axis along which the samples lie of an activation as recorded; None where tokens may be outside of them."""
    if shape[0] == BATCH:
        return 0
    if len(shape) < 3:
        return None
    return 1 if shape[1] == BATCH else 0


def _given(flow: Labelling, op: Op) -> tuple[str, Edit | None] | None:
    """The module whose output alone an op reads, or the passage that the result of a call in the host's code may take;
    None where there is neither.
    """
    trace, value = flow.trace, op.inputs[0]
    if trace.values[value].producer < 0 or any(value in o.inputs for o in trace.ops if o is not op):
        return None
    made = trace.ops[trace.values[value].producer]
    call = trace.calls[made.call]
    if call.path and call.output == value and op.call != call.index:
        return call.path, None
    place = made.places[0] if made.places else None
    kind = trace.classes[call.path]
    function = None if place is None else rewrite.method_of(kind, place.code)
    if place is None or place.span is None or function is None or rewrite.why_not(kind, function) is not None:
        return None
    if any(o is not made and o.places[:1] == made.places[:1] and o.call == made.call for o in trace.ops):
        return None
    if not rewrite.is_call(kind, function, place.span):
        return None
    edit = Edit(function, place.span, "pass")
    return f"{call.path}.{rewrite.child_of(edit)}".lstrip("."), edit
