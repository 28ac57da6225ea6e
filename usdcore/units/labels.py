"""The label pass: one walk over the recorded ops, a rule for each."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

import torch

from usdcore.units.labelling import Labelling
from usdcore.units.rules import gather, norm, pointwise, product, project, ragged, shape, spatial, stream

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from usdcore.units.graph import Ancestry, Residual
    from usdcore.units.trace import Op, Trace

    Rule = Callable[[Labelling, Op], None]

# Elementwise ops that torch does not tag as such.
UNTAGGED = frozenset({"hardswish", "hardsigmoid", "hardtanh", "relu6", "mish", "prelu", "_prelu_kernel"})
RULES: dict[str, Rule] = {
    **dict.fromkeys(shape.TURNS | shape.RESHAPES, shape.move),
    **dict.fromkeys(shape.SAME, shape.same),
    **dict.fromkeys(shape.REDUCES, shape.reduce),
    **dict.fromkeys(("conv1d", "conv2d", "conv3d"), project.convolution),
    **dict.fromkeys(("mm", "bmm", "matmul"), product.matmul),
    **dict.fromkeys(("softmax", "_softmax", "log_softmax"), norm.softmax),
    **dict.fromkeys(("layer_norm", "rms_norm"), norm.layer_norm),
    **dict.fromkeys(("index", "_unsafe_index"), gather.index),
    **dict.fromkeys(spatial.WINDOWS, spatial.window),
    "constant_pad_nd": spatial.pad,
    "index_select": gather.index_select,
    "embedding": gather.embedding,
    "linear": project.linear,
    "addmm": project.addmm,
    "scaled_dot_product_attention": product.attention,
    "ragged_place": ragged.place,
    "ragged_pack": ragged.pack,
    "group_norm": norm.group_norm,
    "batch_norm": norm.batch_norm,
}


#: For a pass in which labels go on through residual adds: the streams' channels are then labelled too.
STREAM_RULES = {**RULES, "cat": stream.join, "stack": stream.join}


def label(trace: Trace, ancestry: Ancestry, residuals: dict[int, Residual], macs: list[int]) -> Labelling:
    """Number the channels of every projection and follow them to where they are read.

    Labels end at the adds `residuals`. Without any, an add ties what it joins: a stream's channels to those of its
    branches, and to the parameters that become tokens.
    """
    flow = Labelling(trace, ancestry, residuals, macs)
    streams = _streams(flow)
    rules = RULES if residuals else STREAM_RULES
    with torch.inference_mode():
        for op in trace.ops:
            _apply(flow, op, rules)
            for value in streams.intersection(op.outputs):
                reason = f"its entries are the residual stream at {flow.where(op)}"
                flow.taint(flow.labels.get(value, ()), "stream", reason)
                flow.labels[value] = ()
    for value in trace.outputs:
        flow.taint(flow.labels.get(value, ()), "output", "the model's output shows its entries")
    return flow


def _streams(flow: Labelling) -> set[int]:
    """Where residual streams start: entries of branches that mix channels, and what alone becomes such an entry."""
    trace = flow.trace
    readers = Counter(v for op in trace.ops for v in op.inputs)
    found: set[int] = set()
    for residual in flow.residuals.values():
        if not any(mixes(flow, trace.ops[i]) for i in residual.ops):
            continue
        values = [residual.entry]
        while values:  # an add of positions or a dropout before the first block
            value = values.pop()
            found.add(value)
            producer = trace.values[value].producer
            before = [v for v in trace.ops[producer].inputs if trace.values[v].is_data] if producer >= 0 else []
            if len(before) == 1 and readers[before[0]] == 1 and flow.shape(before[0]) == flow.shape(value):
                values += [] if mixes(flow, trace.ops[producer]) else before
    return found


def mixes(flow: Labelling, op: Op) -> bool:
    """Whether an op mixes channels: a product or convolution, but not a depthwise one."""
    if not flow.macs[op.index]:
        return False
    return not (op.name.startswith("conv") and flow.shape(op.inputs[1])[1] == 1 < flow.shape(op.inputs[0])[1])


def _apply(flow: Labelling, op: Op, rules: Mapping[str, Rule]) -> None:
    for value in op.inputs:
        if flow.trace.values[value].overwrites is not None:
            flow.taint(
                flow.labels.get(value, ()), "unknown", f"its memory was written in place before {flow.where(op)}"
            )
    rule = rules.get(op.name)
    if rule is not None:
        rule(flow, op)
    elif torch.Tag.pointwise in op.func.tags or op.name in UNTAGGED:
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
                flow.labels[output] = layers
