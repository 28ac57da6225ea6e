"""Multiply-accumulates of recorded ops, from their shapes: one multiply and one add count once.

Counted as torch's FLOP counter does, halved: products of matrices, convolutions and attention. Everything else is 0.
"""

from __future__ import annotations

from math import prod
from typing import TYPE_CHECKING, Any

from usdcore.units.metacopy import BATCH
from usdcore.units.sizes import leaves

if TYPE_CHECKING:
    from collections.abc import Callable

    from usdcore.units.trace import Op, Trace

Shape = tuple[int, ...]

PRODUCTS = frozenset(
    {"linear", "mm", "bmm", "matmul", "addmm", "baddbmm", "scaled_dot_product_attention"}
    | {"conv1d", "conv2d", "conv3d", "convolution"}
)

# Ops that give what does not depend on the input a size of the input's; its first size is their first number.
SPREADS = frozenset({"expand", "repeat", "repeat_interleave", "zeros", "ones", "full", "empty", "rand", "randn"})


def is_constant(trace: Trace, op: Op) -> bool:
    """Whether an op runs once for a batch of any size: it depends neither on the input nor on its number of samples."""
    if not op.outputs:
        return False
    made = trace.values[op.outputs[0]]
    return not (made.is_data or made.is_rows)


def makes_rows(trace: Trace, op: Op) -> bool:
    """Whether an op makes, of what does not depend on the input, a row for each sample: its first size is a batch's."""
    values = trace.values
    if any(values[v].is_rows for v in op.inputs):
        return True
    if op.name == "expand_as":
        return values[op.inputs[1]].is_data and values[op.outputs[0]].shape[:1] == (BATCH,)
    expr = op.sizes.get(0) if op.name in SPREADS else None
    return expr is not None and any(
        leaf[0] == "dim" and leaf[2] == 0 and (values[leaf[1]].is_data or values[leaf[1]].is_rows)
        for leaf in leaves(expr)
    )


def op_macs(trace: Trace, op: Op) -> int:
    """MACs per sample; an op that runs once for a batch counts whole."""
    if op.name not in PRODUCTS:
        return 0
    macs: int = resized_macs(trace, op, lambda value: trace.values[value].shape)
    return macs


def resized_macs(trace: Trace, op: Op, shape: Callable[[int], Any]) -> Any:
    """`op_macs` where value v has the shape `shape(v)`, of ints or of `Terms`."""
    total = sum(parts(op, [shape(v) for v in op.inputs], shape(op.outputs[0]))) if op.outputs else 0
    return total if is_constant(trace, op) else total // BATCH


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
