"""The label pass: one walk over the recorded ops, a rule for each."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from usdcore.units.labelling import Labelling
from usdcore.units.layers import Layers
from usdcore.units.rules import norm, pointwise, product, project, shape

if TYPE_CHECKING:
    from collections.abc import Callable

    from usdcore.units.graph import Ancestry, Residual
    from usdcore.units.trace import Op, Trace

RULES: dict[str, Callable[[Labelling, Op], None]] = {
    **dict.fromkeys(shape.MOVES, shape.move),
    **dict.fromkeys(shape.SAME, shape.same),
    **dict.fromkeys(shape.REDUCES, shape.reduce),
    **dict.fromkeys(("conv1d", "conv2d", "conv3d"), project.convolution),
    **dict.fromkeys(("mm", "bmm", "matmul"), product.matmul),
    **dict.fromkeys(("softmax", "_softmax", "log_softmax"), norm.softmax),
    **dict.fromkeys(("layer_norm", "rms_norm"), norm.layer_norm),
    "linear": project.linear,
    "addmm": project.addmm,
    "scaled_dot_product_attention": product.attention,
    "group_norm": norm.group_norm,
    "batch_norm": norm.batch_norm,
}


def label(trace: Trace, ancestry: Ancestry, residuals: dict[int, Residual], macs: list[int]) -> Labelling:
    """Number the channels of every projection and follow them to where they are read."""
    flow = Labelling(trace, ancestry, residuals, macs)
    streams = {r.entry for r in residuals.values() if any(_mixes(flow, trace.ops[i]) for i in r.ops)}
    with torch.inference_mode():
        for op in trace.ops:
            _apply(flow, op)
            for value in streams.intersection(op.outputs):
                flow.taint(flow.labels.get(value, ()), "stream", f"its entries are the residual stream at {flow.where(op)}")
                flow.labels[value] = ()
    for value in trace.outputs:
        flow.taint(flow.labels.get(value, ()), "output", "the model's output shows its entries")
    return flow


def _mixes(flow: Labelling, op: Op) -> bool:
    """Whether an op mixes channels: a product or convolution, but not a depthwise one."""
    if not flow.macs[op.index]:
        return False
    return not (op.name.startswith("conv") and flow.shape(op.inputs[1])[1] == 1 < flow.shape(op.inputs[0])[1])


def _apply(flow: Labelling, op: Op) -> None:
    for value in op.inputs:
        if flow.trace.values[value].overwrites is not None:
            flow.taint(
                flow.labels.get(value, ()), "unknown", f"its memory was written in place before {flow.where(op)}"
            )
    rule = RULES.get(op.name)
    if rule is not None:
        rule(flow, op)
    elif torch.Tag.pointwise in op.func.tags:
        pointwise.pointwise(flow, op)
    else:
        _unknown(flow, op)
    for value in op.outputs:
        before = flow.trace.values[value].overwrites
        if before is not None and flow.shape(before) == flow.shape(value):
            flow.labels[value] = flow.labels.get(before, ())


def _unknown(flow: Labelling, op: Op) -> None:
    """No rule: the labels that arrive can't be removed; they stay on an output of the same shape, so that it shows."""
    arrived = [(v, flow.labels[v]) for v in op.inputs if flow.labels.get(v)]
    for value, layers in arrived:
        flow.taint(layers, "unknown", f"it is not known how {flow.where(op)} uses its entries")
        for output in op.outputs:
            if flow.shape(output) == flow.shape(value):
                passed: Layers = layers
                flow.labels[output] = passed
