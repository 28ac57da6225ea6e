"""Multiply-accumulates of recorded ops, from their shapes: one multiply and one add count once.

Counted as torch's FLOP counter does, halved: products of matrices, convolutions and attention. Everything else is 0.
"""

from __future__ import annotations

from math import prod
from typing import TYPE_CHECKING

from usdcore.units.metacopy import BATCH

if TYPE_CHECKING:
    from usdcore.units.trace import Op, Trace

Shape = tuple[int, ...]


def op_macs(trace: Trace, op: Op) -> int:
    """MACs per sample; an op that does not depend on the input runs once for a batch, and counts whole."""
    shapes = [trace.values[v].shape for v in op.inputs]
    total = sum(parts(op, shapes, trace.values[op.outputs[0]].shape)) if op.outputs else 0
    return total // BATCH if op.outputs and trace.values[op.outputs[0]].is_data else total


def parts(op: Op, inputs: list[Shape], output: Shape) -> tuple[int, ...]:
    """MACs of the whole batch: one number, or for attention those of q k^T and of the probabilities times v."""
    name = op.name
    if name in ("linear", "mm", "bmm", "matmul"):
        return (prod(output) * inputs[0][-1],)
    if name in ("addmm", "baddbmm"):
        return (prod(output) * inputs[1][-1],)
    if name in ("conv1d", "conv2d", "conv3d"):
        return (prod(output) * prod(inputs[1][1:]),)
    if name == "convolution":
        is_transposed = op.args[6]
        return (prod(inputs[0] if is_transposed else output) * prod(inputs[1][1:]),)
    if name == "scaled_dot_product_attention":
        return attention_parts(*inputs[:3])
    return (0,)


def attention_parts(q: Shape, k: Shape, v: Shape) -> tuple[int, int]:
    """MACs of q k^T and of the probabilities times v, for q [..., N, d], k [..., M, d] and v [..., M, e]."""
    rows = prod(q[:-1])
    return rows * k[-2] * q[-1], rows * v[-2] * v[-1]
