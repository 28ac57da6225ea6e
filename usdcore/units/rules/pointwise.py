"""Elementwise ops: labels pass. Two labelled operands tie their labels; a parameter's entries align with the labels."""

from __future__ import annotations

from itertools import combinations
from typing import TYPE_CHECKING

from usdcore.units.labelling import Use
from usdcore.units.layers import Layers, is_same, merge, pairs
from usdcore.units.rules.shape import carry_probabilities

if TYPE_CHECKING:
    from torch import Tensor

    from usdcore.units.labelling import Labelling
    from usdcore.units.trace import Op


def pointwise(flow: Labelling, op: Op) -> None:
    """Any elementwise op, with broadcasting."""
    if op.index in flow.residuals and _join_stream(flow, op):
        return
    output = op.outputs[0]
    shape = flow.shape(output)
    labels = [_expanded(flow.labels.get(v, ()), shape) for v in op.inputs]
    slots = [() if flow.trace.values[v].is_data else _expanded(flow.slots(v), shape) for v in op.inputs]
    align(flow, op, [s for found in slots for s in found], [x for found in labels for x in found])
    for a, b in combinations(labels, 2):
        _tie(flow, a, b)
    flow.labels[output] = merge([layer for found in labels for layer in found])
    if not flow.trace.values[output].is_data:
        flow.set_slots(output, merge([layer for found in slots for layer in found]))
    carry_probabilities(flow, op)


def align(flow: Labelling, op: Op, slots: list[Tensor], labels: list[Tensor]) -> None:
    """Note which entries of parameters meet which labels, position by position."""
    for slot_layer in slots:
        for label_layer in labels:
            met = pairs(slot_layer, label_layer)
            if met is not None and len(met[0]):
                flow.uses.append(Use(op.index, "aligns", *met))


def _join_stream(flow: Labelling, op: Op) -> bool:
    """At a residual add the labels end: the stream's channels are not a unit's own. False if both operands agree."""
    a, b = (flow.labels.get(v, ()) for v in op.inputs[:2])
    if len(a) == len(b) and all(is_same(x, y) for x, y in zip(a, b, strict=True)):
        return False
    flow.taint((*a, *b), "stream", f"its entries join the residual stream at {flow.where(op)}")
    flow.labels[op.outputs[0]] = ()
    return True


def _tie(flow: Labelling, a: Layers, b: Layers) -> None:
    for x in a:
        for y in b:
            met = None if is_same(x, y) else pairs(x, y)
            if met is not None and len(met[0]):
                flow.ties.append(met)


def _expanded(layers: Layers, shape: tuple[int, ...]) -> Layers:
    return tuple(layer.expand(shape) for layer in layers)
