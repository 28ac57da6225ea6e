"""Elementwise ops: labels pass. Two labelled operands tie their labels; a parameter's entries align with the labels."""

from __future__ import annotations

from functools import reduce
from typing import TYPE_CHECKING

from usdcore.units.labelling import Use
from usdcore.units.layers import Layers, axes, compact, is_same, merge, pairs
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
    flow.labels[output] = reduce(lambda a, b: tied(flow, a, b), labels, ())
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


def tied(flow: Labelling, a: Layers, b: Layers) -> Layers:
    """Tie the labels that meet in two operands of one shape.

    A layer that is tied position by position to another need not go on.
    """
    kept = list(a)
    for y in b:
        is_covered = False
        for x in a:
            if is_same(x, y):
                is_covered = True
                continue
            met = pairs(x, y)
            if met is not None and len(met[0]):
                flow.ties.append(met)
                is_covered |= axes(y) <= axes(x) and bool((compact(x) >= 0).all())
        if not is_covered:
            kept.append(y)
    return tuple(kept)


def _expanded(layers: Layers, shape: tuple[int, ...]) -> Layers:
    return tuple(layer if layer.shape == shape else layer.expand(shape) for layer in layers)
