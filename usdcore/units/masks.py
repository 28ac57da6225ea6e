"""Where a factor on a group's entries acts: at the input of every product that reads them."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from usdcore.units.layers import axes, compact
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
    if not call.path or not call.inputs or call.inputs[0] != op.inputs[0]:
        return f"{flow.where(op)} reads its entries, but not as the input of a module"
    if tally.num_calls[call.path] > 1:
        return f"{call.path} reads its entries and runs more than once"
    shape = flow.shape(op.inputs[0])
    entry_of = np.full(shape[axis], -1)
    for layer in flow.labels.get(op.inputs[0], ()):
        if axes(layer) == {axis}:
            entries = tally.entries(group, compact(layer).ravel())
            entry_of = np.where(entry_of < 0, entries, entry_of)
    if (entry_of < 0).all():
        return f"{flow.where(op)} reads its entries, but not along one axis of its input"
    return MaskPoint(call.path, entry_of, -1 if axis == len(shape) - 1 else axis)
