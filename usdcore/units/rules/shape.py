"""Ops that only move positions: the same op runs on the label layers, so any layout comes out right."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from usdcore.units.labelling import Norm
from usdcore.units.layers import Layers, axes, compact, drop_axes, none, tidy
from usdcore.units.trace import refill

if TYPE_CHECKING:
    from usdcore.units.labelling import Labelling
    from usdcore.units.trace import Op

# Ops after which a layer that was constant along an axis is still held with stride 0 there.
TURNS = frozenset(
    {"permute", "transpose", "t", "movedim", "swapaxes", "unsqueeze", "squeeze", "expand", "unbind", "select"}
    | {"chunk", "split", "split_with_sizes", "unsafe_chunk", "unsafe_split", "unsafe_split_with_sizes"}
    | {"slice", "narrow"}
)
RESHAPES = frozenset(
    {"view", "reshape", "_unsafe_view", "_reshape_alias", "flatten", "unflatten", "diagonal", "unfold"}
    | {"cat", "stack", "flip", "roll", "repeat", "split_copy"}
)
SAME = frozenset({"alias", "detach", "contiguous", "clone", "to", "_to_copy", "dropout", "lift_fresh"})
REDUCES = frozenset({"mean", "sum", "amax", "amin", "var", "std", "linalg_vector_norm", "norm", "prod", "any", "all"})


def move(flow: Labelling, op: Op) -> None:
    """Run the op on the layers of its inputs; an input with fewer layers than another is filled up with -1."""
    for value, layers in zip(op.outputs, _moved(op, {v: flow.labels.get(v, ()) for v in op.inputs}, flow), strict=True):
        flow.labels[value] = layers
    if not any(flow.trace.values[v].is_data for v in op.inputs):
        slots = _matched({v: flow.slots(v) for v in op.inputs}, flow)
        for value, layers in zip(op.outputs, _moved(op, slots, flow), strict=True):
            flow.set_slots(value, layers)
    carry_probabilities(flow, op)


def same(flow: Labelling, op: Op) -> None:
    """The output is the first input."""
    flow.labels[op.outputs[0]] = flow.labels.get(op.inputs[0], ())
    if not flow.trace.values[op.inputs[0]].is_data:
        flow.set_slots(op.outputs[0], flow.slots(op.inputs[0]))
    carry_probabilities(flow, op)


def reduce(flow: Labelling, op: Op) -> None:
    """A mean, sum or norm over axes on which the labels do not depend keeps them; over their own axis it mixes them.

    Where they lie along another axis too (the dims of a head), a coarse label stays for each row.
    """
    value, output = op.inputs[0], op.outputs[0]
    shape = flow.shape(value)
    named = next((a for a in op.args[1:] if isinstance(a, list | tuple)), None)
    dims = tuple(sorted(d % len(shape) for d in named)) if named else tuple(range(len(shape)))
    kept: list[Tensor] = []
    for layer in flow.labels.get(value, ()):
        coarse = _reduced(flow, op, layer, dims)
        if coarse is not None:
            kept.append(coarse)
        elif axes(layer) & set(dims):
            flow.taint((layer,), "unknown", f"{flow.where(op)} sums over its entries")
        else:
            kept.append(drop_axes(layer, dims, flow.shape(output)))
    flow.labels[output] = tuple(kept)


def _reduced(flow: Labelling, op: Op, layer: Tensor, dims: tuple[int, ...]) -> Tensor | None:
    """A coarse label for each row along the one axis that is reduced; None where the labels lie along no other axis."""
    own = axes(layer) & set(dims)
    if len(own) != 1 or own == axes(layer):
        return None
    (axis,) = own
    coarse = flow.coarsen(layer, axis, (*layer.shape[:axis], 1, *layer.shape[axis + 1 :]))
    if coarse is None:
        return None
    flow.norms.append(Norm(op.index, compact(layer), (axis,)))
    return drop_axes(coarse, dims, flow.shape(op.outputs[0]))


def carry_probabilities(flow: Labelling, op: Op) -> None:
    """Softmax outputs stay probabilities through shape ops, dropout and elementwise ops."""
    if op.inputs and op.inputs[0] in flow.probabilities:
        for value in op.outputs:
            flow.probabilities[value] = flow.probabilities[op.inputs[0]]


def _matched(slots: dict[int, Layers], flow: Labelling) -> dict[int, Layers]:
    """The layers of several parameters in one order: those along the same axes stand at the same place."""
    if len(slots) < 2:
        return slots
    own = {v: {axes(layer): layer for layer in layers} for v, layers in slots.items()}
    along = list(dict.fromkeys(key for layers in own.values() for key in layers))
    return {v: tuple(layers.get(key, none(flow.shape(v))) for key in along) for v, layers in own.items()}


def _moved(op: Op, layers: dict[int, Layers], flow: Labelling) -> list[Layers]:
    number = max((len(found) for found in layers.values()), default=0)
    outputs: list[list[Tensor]] = [[] for _ in op.outputs]
    func = torch.ops.aten.reshape.default if op.name in ("view", "_unsafe_view") else op.func
    for i in range(number):
        own = {v: found[i] if i < len(found) else none(flow.shape(v)) for v, found in layers.items()}
        out: Any = func(*refill(op.args, own.__getitem__), **refill(op.kwargs, own.__getitem__))
        for into, made in zip(outputs, (out,) if isinstance(out, Tensor) else out, strict=True):
            into.append(made if op.name in TURNS else tidy(made))
    return [tuple(made) for made in outputs]
