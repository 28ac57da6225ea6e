"""Products of two activations: q k^T, probabilities times v, and fused attention, which is both.

Where the contracted axis is labelled (q k^T over the head's dims) the labels are consumed, position j of one operand
with position j of the other, and one coarse label stays for each row: the head. Where it is not (probabilities times v,
over the tokens) the labels of both operands pass.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch

from usdcore.units.labelling import Core, Norm, Share
from usdcore.units.layers import Layers, axes, compact, distinct
from usdcore.units.macs import attention_parts
from usdcore.units.metacopy import BATCH
from usdcore.units.rules.core import note_core
from usdcore.units.rules.pointwise import align, tied
from usdcore.units.rules.project import matmul_weight
from usdcore.units.trace import Ref

if TYPE_CHECKING:
    from torch import Tensor

    from usdcore.units.labelling import Labelling
    from usdcore.units.trace import Op

Shape = tuple[int, ...]


def matmul(flow: Labelling, op: Op) -> None:
    """mm, bmm or matmul of a [..., N, K] and b [..., K, M]; either may be a parameter."""
    a, b = op.inputs
    shape_a, shape_b = flow.shape(a), flow.shape(b)
    if len(shape_b) == 2 and not flow.trace.values[b].is_data:
        matmul_weight(flow, op, a, b, [])
        return
    layers_a, layers_b = flow.labels.get(a, ()), flow.labels.get(b, ())
    output = op.outputs[0]
    shape = flow.shape(output)
    if not flow.trace.values[output].is_data and len(shape) == len(shape_a) == len(shape_b):
        slots = _uncontracted((flow.slots(a), flow.slots(b)), shape)
        flow.set_slots(output, tuple(slots))
        for layer in slots:
            row = compact(layer).ravel()
            flow.slot_shares.append(Share(op.index, row, flow.macs[op.index] / len(row)))
    if len(shape_a) != len(shape_b) or len(shape) < 2 or len(shape) != len(shape_a):
        flow.taint((*layers_a, *layers_b), "unknown", f"{flow.where(op)} multiplies activations of different ranks")
        flow.labels[output] = ()
        return
    flow.labels[output] = product(flow, op, (layers_a, layers_b), shape, flow.macs[op.index])
    if a in flow.probabilities:
        note_core(flow, op, (layers_a, layers_b), shape_b)
    elif b in flow.probabilities:
        note_core(flow, op, (_turned(layers_b), _turned(layers_a)), (*shape_a[:-2], shape_a[-1], shape_a[-2]), -2)


def attention(flow: Labelling, op: Op) -> None:
    """Fused attention over q [..., N, d], k [..., M, d], v [..., M, e]."""
    q, k, v = op.inputs[:3]
    shapes = [flow.shape(x) for x in (q, k, v)]
    macs = [part // BATCH for part in attention_parts(*shapes)]
    keys, values = _turned(flow.labels.get(k, ())), flow.labels.get(v, ())
    logits_shape = (*shapes[0][:-1], shapes[1][-2])
    output = op.outputs[0]
    batches = {shape[:-2] for shape in shapes}
    if len({len(batch) for batch in batches}) > 1 or op.kwargs.get("enable_gqa"):
        layers = (*flow.labels.get(q, ()), *keys, *values)
        flow.taint(layers, "unknown", f"{flow.where(op)} shares keys and values between heads")
        flow.labels[output] = ()
        flow.cores.append(Core(op.index, flow.below(layers), shapes[2], reason="its heads share keys and values"))
        return
    logits = product(flow, op, (flow.labels.get(q, ()), keys), logits_shape, macs[0])
    logits = _biased(flow, op, logits, logits_shape)
    flow.labels[output] = product(flow, op, (logits, values), flow.shape(output), macs[1])
    note_core(flow, op, (logits, values), shapes[2])


def product(flow: Labelling, op: Op, operands: tuple[Layers, Layers], shape: Shape, macs: int) -> Layers:
    """The layers of a [..., N, K] @ b [..., K, M], of shape `shape`; notes ties, costs, and what it can't follow."""
    last = len(shape) - 1
    a_read = [layer for layer in operands[0] if last in axes(layer)]
    b_read = [layer for layer in operands[1] if last - 1 in axes(layer)]
    passing = [layer for layer in _uncontracted(operands, shape) if axes(layer)]
    if not a_read and not b_read:
        _count(flow, op, passing, macs)
        return tuple(passing)
    if not passing and len(a_read) + len(b_read) == 1:
        found = _with_constant(flow, op, a_read, b_read, shape)
        if found is not None:
            return found
    if len(a_read) != 1 or len(b_read) != 1 or last - 1 in axes(a_read[0]) or last in axes(b_read[0]):
        flow.taint((*a_read, *b_read), "unknown", f"{flow.where(op)} mixes entries of two activations")
        return tuple(passing)
    taken = (axes(a_read[0]) - {last}) | (axes(b_read[0]) - {last - 1})
    _count(flow, op, [layer for layer in passing if not axes(layer) & taken], macs)
    return (*_heads(flow, op, a_read[0], b_read[0], shape, macs), *passing)


def _count(flow: Labelling, op: Op, passing: list[Tensor], macs: int) -> None:
    """What a product costs falls with the entries that pass: once for all layers that share an axis."""
    counted = sorted(passing, key=lambda layer: max(axes(layer)) < layer.ndim - 2)  # those of a row or column first
    for layer in (*counted[:1], *(x for x in passing if not axes(x) & axes(counted[0]))):
        labels = compact(layer).ravel()
        flow.shares.append(Share(op.index, labels, macs / len(labels)))


def _uncontracted(operands: tuple[Layers, Layers], shape: Shape) -> list[Tensor]:
    """The layers that do not depend on the contracted axis, on the output."""
    last = len(shape) - 1
    found = []
    for layers, axis in zip(operands, (last, last - 1), strict=True):
        found += [layer.narrow(axis, 0, 1).expand(shape) for layer in layers if axis not in axes(layer)]
    return found


def _heads(flow: Labelling, op: Op, a: Tensor, b: Tensor, shape: Shape, macs: int) -> Layers:
    """q k^T: tie dim j of q with dim j of k; the coarse labels of the heads, on the logits.

    Where several heads share a k, its dims are not tied to theirs: a head can go while the k stays.
    """
    left = compact(a)[..., 0, :]
    right = compact(b)[..., :, 0]
    left, right = np.broadcast_arrays(left, right)
    if left.size == len(distinct(left)) and right.size == len(distinct(right)):
        flow.ties.append((left.ravel().copy(), right.ravel().copy()))
    flow.shares.append(Share(op.index, left.ravel(), macs / left.size))
    both = torch.from_numpy(np.concatenate([left, right], axis=-1))
    coarse = flow.coarsen(both, both.ndim - 1, (*both.shape[:-1], 1))
    if coarse is None:
        children = both.reshape(1, -1).numpy()
        base = flow.fresh(1)
        flow.coarse.append((np.array([base]), children))
        coarse = torch.full((*both.shape[:-1], 1), base)
    return (coarse.unsqueeze(-2).expand(shape),)


def _with_constant(flow: Labelling, op: Op, a_read: list[Tensor], b_read: list[Tensor], shape: Shape) -> Layers | None:
    """A head's dims times a parameter that all heads share (relative positions): a coarse label for each head stays."""
    (layer,) = a_read or b_read
    axis = layer.ndim - (1 if a_read else 2)
    other = op.inputs[1 if a_read else 0]
    if flow.trace.values[other].is_data or flow.labels.get(other) or not axes(layer) - {axis}:
        return None
    coarse = flow.coarsen(layer, axis, (*layer.shape[:axis], 1, *layer.shape[axis + 1 :]))
    if coarse is None:
        return None
    labels = compact(layer).ravel()
    flow.shares.append(Share(op.index, labels, flow.macs[op.index] / len(labels)))
    flow.norms.append(Norm(op.index, compact(layer), (axis,), "are multiplied with a parameter of its own by"))
    return (coarse.expand(shape),)


def _biased(flow: Labelling, op: Op, logits: Layers, shape: Shape) -> Layers:
    """The bias (attention mask) of fused attention meets the logits as in an add."""
    given = op.args[3] if len(op.args) > 3 else op.kwargs.get("attn_mask")
    if not isinstance(given, Ref):
        return logits
    slots = () if flow.trace.values[given.value].is_data else flow.slots(given.value)
    align(flow, op, [layer.expand(shape) for layer in slots], list(logits))
    return tied(flow, logits, tuple(layer.expand(shape) for layer in flow.labels.get(given.value, ())))


def _turned(layers: Layers) -> Layers:
    return tuple(layer.transpose(-1, -2) for layer in layers)
