"""Linear layers and convolutions: a product with a weight reads the labels of one axis and makes new ones."""

from __future__ import annotations

from math import prod
from typing import TYPE_CHECKING

import numpy as np

from usdcore.units.labelling import Share, Taint, Use
from usdcore.units.layers import along, axes, compact, lies_along, rows, unique_pairs
from usdcore.units.rules.pointwise import align
from usdcore.units.rules.shape import carry_probabilities

if TYPE_CHECKING:
    from torch import Tensor

    from usdcore.units.labelling import Labelling
    from usdcore.units.layers import IntArray, Layers
    from usdcore.units.trace import Op


def linear(flow: Labelling, op: Op) -> None:
    """x [..., I] and a weight [O, I]."""
    x, weight, *bias = op.inputs
    last = len(flow.shape(op.outputs[0])) - 1
    _note_mixed(flow, read(flow, op, x, last, flow.slot_row(weight, 1)))
    make(flow, op, x, (last, last), flow.slot_row(weight, 0), bias)
    carry_probabilities(flow, op)


def matmul_weight(flow: Labelling, op: Op, x: int, weight: int, bias: list[int]) -> None:
    """x [..., I] and a bare weight [I, O]."""
    last = len(flow.shape(op.outputs[0])) - 1
    read(flow, op, x, last, flow.slot_row(weight, 0))
    make(flow, op, x, (last, last), flow.slot_row(weight, 1), bias)


def addmm(flow: Labelling, op: Op) -> None:
    """bias + x [B, I] @ weight [I, O]."""
    matmul_weight(flow, op, op.inputs[1], op.inputs[2], [op.inputs[0]])


def convolution(flow: Labelling, op: Op) -> None:
    """x [B, I, ...] and a weight [O, I / groups, ...]; a depthwise one scales each channel, other groups mix labels."""
    x, weight, *bias = op.inputs
    labels = flow.labels.get(x, ())
    channels, outputs = flow.shape(x)[1], flow.shape(weight)[0]
    grouped = channels // flow.shape(weight)[1]
    if grouped == channels == outputs:  # a single channel was one of several, most likely
        _depthwise(flow, op)
        return
    if any(axes(layer) - {1} for layer in labels) or (grouped > 1 and labels):
        flow.taint(labels, "unknown", f"{flow.where(op)} mixes its entries in groups or positions")
    elif labels:
        _note_mixed(flow, read(flow, op, x, 1, flow.slot_row(weight, 1)))
    make(flow, op, None, (1, 1), None if grouped > 1 else flow.slot_row(weight, 0), bias)
    if prod(flow.shape(weight)[2:]) == 1:
        carry_probabilities(flow, op)


def read(flow: Labelling, op: Op, x: int, axis: int, slots: IntArray | None) -> IntArray | None:
    """Note which entries of the weight read which labels of `x` along `axis`; these, a row for each other position."""
    read_labels: IntArray | None = None
    for layer in flow.labels.get(x, ()):
        if axis not in axes(layer) and not lies_along(layer, axis):
            continue
        table, _ = rows(layer, axis)
        read_labels = table if read_labels is None else np.where(read_labels < 0, table, read_labels)
        if slots is None or len(slots) != table.shape[1]:
            flow.taint((layer,), "unknown", f"{flow.where(op)} reads its entries with a weight that is computed")
            continue
        met = unique_pairs(np.broadcast_to(slots, table.shape).ravel(), table.ravel())
        flow.uses.append(Use(op.index, "reads", *met))
    if read_labels is not None:
        flow.shares.append(Share(op.index, read_labels.ravel(), flow.macs[op.index] / read_labels.size))
    return read_labels


def _note_mixed(flow: Labelling, read_labels: IntArray | None) -> None:
    """What the labels that are made next were mixed from."""
    if read_labels is not None and len(read_labels) == 1:
        flow.mixed[flow.num_labels] = read_labels[0]


def make(
    flow: Labelling,
    op: Op,
    x: int | None,
    axis: tuple[int, int],
    slots: IntArray | None,
    bias: list[int],
) -> None:
    """New labels along the output's axis `axis[1]`; labels of `x` along axes other than `axis[0]` pass."""
    output = op.outputs[0]
    shape = flow.shape(output)
    number = shape[axis[1]]
    base = flow.fresh(number)
    labels = np.arange(base, base + number)
    if slots is None or len(slots) != number:
        reason = (
            f"{flow.where(op)} makes its entries with a weight that is computed or grouped, not stored as it is used"
        )
        flow.taints.append(Taint(labels, "unknown", reason))
    else:
        flow.uses.append(Use(op.index, "makes", slots, labels))
    flow.shares.append(Share(op.index, labels, flow.macs[op.index] / number))
    layer = along(base, shape, axis[1])
    passed = () if x is None else _passing(flow, x, axis[0], shape)
    flow.labels[output] = (layer, *passed)
    for value in bias:
        for slot_layer in flow.slots(value):
            if len(flow.shape(value)) == 1:
                slot_layer = along(int(compact(slot_layer)[0]), shape, axis[1])
            align(flow, op, [slot_layer.expand(shape)], [layer])


def _passing(flow: Labelling, x: int, axis: int, shape: tuple[int, ...]) -> Layers:
    passed: list[Tensor] = []
    for layer in flow.labels.get(x, ()):
        others = axes(layer) - {axis}
        if others and axis in axes(layer):
            coarse = flow.coarsen(layer, axis, (*layer.shape[:axis], 1, *layer.shape[axis + 1 :]))
            passed += [] if coarse is None else [coarse.expand(shape)]
        elif others:
            passed.append(layer.narrow(axis, 0, 1).expand(shape))
    return tuple(passed)


def _depthwise(flow: Labelling, op: Op) -> None:
    x, weight, *bias = op.inputs
    shape = flow.shape(op.outputs[0])
    kept = []
    for layer in flow.labels.get(x, ()):
        if lies_along(layer, 1):
            kept.append(layer.narrow(2, 0, 1).expand(shape) if layer.ndim == 3 else layer[:, :, :1, :1].expand(shape))
        else:
            flow.taint((layer,), "unknown", f"{flow.where(op)} mixes its entries in positions")
    flow.labels[op.outputs[0]] = tuple(kept)
    for value in (weight, *bias):
        row = flow.slot_row(value, 0)
        if row is not None:
            align(flow, op, [along(int(row[0]), shape, 1)], kept)
    if kept:
        labels = compact(kept[0]).ravel()
        flow.shares.append(Share(op.index, labels, prod(shape) and flow.macs[op.index] / len(labels)))
