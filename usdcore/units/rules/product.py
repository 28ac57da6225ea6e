"""Products of two activations: q k^T, probabilities times v, and fused attention, which is both.

Where the contracted axis is labelled (q k^T over the head's dims) the labels are consumed, position j of one operand
with position j of the other, and one coarse label stays for each row: the head. Where it is not (probabilities times v,
over the tokens) the labels of both operands pass.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch

from usdcore.units.labelling import Core, Share
from usdcore.units.layers import IntArray, Layers, axes, compact
from usdcore.units.macs import attention_parts
from usdcore.units.metacopy import BATCH
from usdcore.units.rules.project import matmul_weight

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
    if len(shape_a) != len(shape_b) or len(shape) < 2 or len(shape) != len(shape_a):
        flow.taint((*layers_a, *layers_b), "unknown", f"{flow.where(op)} multiplies activations of different ranks")
        flow.labels[output] = ()
        return
    flow.labels[output] = product(flow, op, (layers_a, layers_b), shape, flow.macs[op.index])
    if a in flow.probabilities:
        _note_core(flow, op, (layers_a, layers_b), shape_b)


def attention(flow: Labelling, op: Op) -> None:
    """Fused attention over q [..., N, d], k [..., M, d], v [..., M, e]."""
    q, k, v = op.inputs[:3]
    shapes = [flow.shape(x) for x in (q, k, v)]
    macs = [part // BATCH for part in attention_parts(*shapes)]
    keys = tuple(layer.transpose(-1, -2) for layer in flow.labels.get(k, ()))
    values = flow.labels.get(v, ())
    logits_shape = (*shapes[0][:-1], shapes[1][-2])
    output = op.outputs[0]
    if len({shape[:-2] for shape in shapes}) > 1:
        layers = (*flow.labels.get(q, ()), *keys, *values)
        flow.taint(layers, "unknown", f"{flow.where(op)} shares keys and values between heads")
        flow.labels[output] = ()
        flow.cores.append(Core(op.index, flow.below(layers), shapes[2], reason="its heads share keys and values"))
        return
    logits = product(flow, op, (flow.labels.get(q, ()), keys), logits_shape, macs[0])
    flow.labels[output] = product(flow, op, (logits, values), flow.shape(output), macs[1])
    _note_core(flow, op, (logits, values), shapes[2])


def product(flow: Labelling, op: Op, operands: tuple[Layers, Layers], shape: Shape, macs: int) -> Layers:
    """The layers of a [..., N, K] @ b [..., K, M], of shape `shape`; notes ties, costs, and what it can't follow."""
    last = len(shape) - 1
    a_read = [layer for layer in operands[0] if last in axes(layer)]
    b_read = [layer for layer in operands[1] if last - 1 in axes(layer)]
    passing = [layer.narrow(last, 0, 1).expand(shape) for layer in operands[0] if last not in axes(layer)]
    passing += [layer.narrow(last - 1, 0, 1).expand(shape) for layer in operands[1] if last - 1 not in axes(layer)]
    passing = [layer for layer in passing if axes(layer)]
    if not a_read and not b_read:
        counted = [layer for layer in passing if axes(layer) & {last - 1, last}] or passing
        if counted:
            labels = compact(counted[0]).ravel()
            flow.shares.append(Share(op.index, labels, macs / len(labels)))
        return tuple(passing)
    if len(a_read) != 1 or len(b_read) != 1 or last - 1 in axes(a_read[0]) or last in axes(b_read[0]):
        flow.taint((*a_read, *b_read), "unknown", f"{flow.where(op)} mixes entries of two activations")
        return tuple(passing)
    return (*_heads(flow, op, a_read[0], b_read[0], shape, macs), *passing)


def _heads(flow: Labelling, op: Op, a: Tensor, b: Tensor, shape: Shape, macs: int) -> Layers:
    """q k^T: tie dim j of q with dim j of k; the coarse labels of the heads, on the logits."""
    left = compact(a)[..., 0, :]
    right = compact(b)[..., :, 0]
    left, right = np.broadcast_arrays(left, right)
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


def _note_core(flow: Labelling, op: Op, operands: tuple[Layers, Layers], v_shape: Shape) -> None:
    """Note the core; where its heads are known, the labels of v say all about the output, and the coarse ones end."""
    core = _core(flow, op, operands, v_shape)
    flow.cores.append(core)
    if core.v is not None:
        output = op.outputs[0]
        flow.labels[output] = tuple(x for x in flow.labels[output] if len(flow.shape(output)) - 1 in axes(x))


def _core(flow: Labelling, op: Op, operands: tuple[Layers, Layers], v_shape: Shape) -> Core:
    """The heads of probabilities [..., N, M] times values [..., M, e]."""
    last = len(v_shape) - 1
    involved = flow.below((*operands[0], *operands[1]))
    children = {int(label): row for labels, table in flow.coarse for label, row in zip(labels, table, strict=True)}
    logits = [x for x in operands[0] if not axes(x) & {last - 1, last} and int(compact(x).flat[0]) in children]
    values = [x for x in operands[1] if last in axes(x) and last - 1 not in axes(x)]
    where = flow.where(op)
    if len(logits) != 1 or not values:
        return Core(op.index, involved, v_shape, reason=f"its heads can't be told apart at {where}")
    heads, table = _table(compact(logits[0])[..., 0, 0], compact(values[0])[..., 0, :])
    if len(np.unique(heads)) != len(heads) or heads.min() < 0 or len(np.unique(table)) != table.size:
        return Core(op.index, involved, v_shape, reason=f"its heads share projections at {where}")
    qk = np.stack([children[int(label)] for label in heads])
    half = qk.shape[1] // 2
    return Core(op.index, involved, v_shape, qk[:, :half], qk[:, half:], table)


def _table(heads: IntArray, values: IntArray) -> tuple[IntArray, IntArray]:
    """Each head with its values' labels once, [H] and [H, e], in the order in which they lie in the core.

    That order is the host's own, so it stays when labels change: heads are numbered by it.
    """
    shape = np.broadcast_shapes(heads.shape, values.shape[:-1])
    flat_heads = np.broadcast_to(heads, shape).ravel()
    flat_values = np.broadcast_to(values, (*shape, values.shape[-1])).reshape(len(flat_heads), -1)
    both = np.column_stack([flat_values, flat_heads])
    both = both[np.sort(np.unique(both, axis=0, return_index=True)[1])]
    return both[:, -1], both[:, :-1]
