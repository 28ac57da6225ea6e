"""Rules of the pass in which labels go on through residual adds: what joins the stream's tokens has its channels."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from usdcore.units.labelling import Use
from usdcore.units.layers import along, axes, compact
from usdcore.units.rules import shape

if TYPE_CHECKING:
    from torch import Tensor

    from usdcore.units.labelling import Labelling
    from usdcore.units.layers import Layers
    from usdcore.units.trace import Op


def join(flow: Labelling, op: Op) -> None:
    """Tensors side by side (cat) or one behind the other (stack): along all other axes they are cut together, so their
    labels are tied there.

    A parameter among them (a class token, registers) gets labels of its own, which its entries make.
    """
    output = op.outputs[0]
    dim = (op.args[1] if len(op.args) > 1 else op.kwargs.get("dim", 0)) % len(flow.shape(output))
    joined = dim if op.name == "cat" else None
    if flow.trace.values[output].is_data:
        for value in op.inputs:
            if not flow.labels.get(value) and not flow.trace.values[value].is_data:
                flow.labels[value] = _made(flow, op, value, joined)
    layers = [layer for v in op.inputs for layer in flow.labels.get(v, ())]
    if not layers or any(joined in axes(layer) for layer in layers):
        shape.move(flow, op)
        return
    kept: list[Tensor] = []
    for layer in layers:
        same = [other for other in kept if compact(other).shape == compact(layer).shape]
        flow.ties += [(compact(other).ravel().copy(), compact(layer).ravel().copy()) for other in same]
        kept += [] if same else [layer]
    kept = [layer.narrow(dim, 0, 1) if op.name == "cat" else layer.unsqueeze(dim) for layer in kept]
    flow.labels[output] = tuple(layer.expand(flow.shape(output)) for layer in kept)


def _made(flow: Labelling, op: Op, value: int, joined: int | None) -> Layers:
    """Labels for the positions of a parameter along each axis but the one along which it is put beside others."""
    made = []
    for slots in flow.slots(value):
        own = axes(slots)
        if len(own) == 1 and joined not in own:
            (axis,) = own
            size = flow.shape(value)[axis]
            base = flow.fresh(size)
            flow.uses.append(Use(op.index, "makes", compact(slots).ravel().copy(), np.arange(base, base + size)))
            made.append(along(base, flow.shape(value), axis))
    return tuple(made)
