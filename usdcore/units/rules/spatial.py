"""Pooling, resizing and padding: positions change, channels do not."""

from __future__ import annotations

from typing import TYPE_CHECKING

from usdcore.units.layers import Layers, axes

if TYPE_CHECKING:
    from usdcore.units.labelling import Labelling
    from usdcore.units.trace import Op

# Ops over positions, with how many of the last axes these are.
WINDOWS = {
    f"{kind}{number}d{suffix}": number
    for kind in ("avg_pool", "max_pool", "adaptive_avg_pool", "_adaptive_avg_pool", "adaptive_max_pool")
    for number in (1, 2, 3)
    for suffix in ("", "_with_indices")
} | {
    "upsample_nearest1d": 1,
    "upsample_nearest2d": 2,
    "upsample_bilinear2d": 2,
    "upsample_bicubic2d": 2,
    "_upsample_bilinear2d_aa": 2,
    "_upsample_bicubic2d_aa": 2,
}


def window(flow: Labelling, op: Op) -> None:
    """Each channel is pooled or resized on its own."""
    ndim = len(flow.shape(op.inputs[0]))
    _along(flow, op, set(range(ndim - WINDOWS[op.name], ndim)), "mixes")


def pad(flow: Labelling, op: Op) -> None:
    """Constants around the positions, for each channel alike."""
    ndim, widths = len(flow.shape(op.inputs[0])), op.args[1]
    padded = {ndim - 1 - i // 2 for i, width in enumerate(widths) if width != 0}
    _along(flow, op, padded, "pads")


def _along(flow: Labelling, op: Op, moved: set[int], verb: str) -> None:
    value = op.inputs[0]
    for layer in flow.labels.get(value, ()):
        if axes(layer) & moved:
            flow.taint((layer,), "unknown", f"{flow.where(op)} {verb} its entries")
    kept = _still(flow.labels.get(value, ()), moved)
    slots = () if flow.trace.values[value].is_data else _still(flow.slots(value), moved)
    for output in op.outputs:
        shape = flow.shape(output)
        flow.labels[output] = tuple(layer.expand(shape) for layer in kept)
        flow.set_slots(output, tuple(layer.expand(shape) for layer in slots))


def _still(layers: Layers, moved: set[int]) -> Layers:
    """The layers that do not depend on some axes, with size 1 there."""
    kept = []
    for layer in layers:
        if not axes(layer) & moved:
            for axis in moved:
                layer = layer.narrow(axis, 0, 1)
            kept.append(layer)
    return tuple(kept)
