"""Normalisations and softmax: labels pass, but what is normalised together can only be removed together."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from usdcore.units.labelling import Norm
from usdcore.units.layers import Layers, axes, compact
from usdcore.units.rules.pointwise import align

if TYPE_CHECKING:
    from torch import Tensor

    from usdcore.units.labelling import Labelling
    from usdcore.units.trace import Op


def layer_norm(flow: Labelling, op: Op) -> None:
    """LayerNorm or RMSNorm over the last axes; the weight and bias align with them."""
    ndim = len(flow.shape(op.inputs[0]))
    _normalise(flow, op, tuple(range(ndim - len(op.args[1]), ndim)))
    _scale(flow, op, None)


def group_norm(flow: Labelling, op: Op) -> None:
    """GroupNorm mixes channels and positions."""
    ndim = len(flow.shape(op.inputs[0]))
    _normalise(flow, op, tuple(range(1, ndim)))
    _scale(flow, op, 1)


def batch_norm(flow: Labelling, op: Op) -> None:
    """BatchNorm with stored statistics acts on each channel (axis 1) alone."""
    flow.labels[op.outputs[0]] = flow.labels.get(op.inputs[0], ())
    _scale(flow, op, 1)


def softmax(flow: Labelling, op: Op) -> None:
    """The output are probabilities: the mark of an attention core where they multiply values."""
    value, output = op.inputs[0], op.outputs[0]
    _normalise(flow, op, (op.args[1] % len(flow.shape(value)),))
    flow.probabilities[output] = flow.below(flow.labels[output])


def _normalise(flow: Labelling, op: Op, dims: tuple[int, ...]) -> None:
    layers = flow.labels.get(op.inputs[0], ())
    for layer in layers:
        if axes(layer) & set(dims):
            flow.norms.append(Norm(op.index, compact(layer), dims))
    flow.labels[op.outputs[0]] = layers


def _scale(flow: Labelling, op: Op, axis: int | None) -> None:
    """Align the op's parameters: with the last axes (None), or with one axis."""
    shape = flow.shape(op.outputs[0])
    layers: Layers = flow.labels.get(op.outputs[0], ())
    for value in op.inputs[1:]:
        slots = [_placed(layer, shape, axis) for layer in flow.slots(value)]
        align(flow, op, slots, list(layers))


def _placed(layer: Tensor, shape: tuple[int, ...], axis: int | None) -> Tensor:
    if axis is None:
        return layer.expand(shape)
    view = [1] * len(shape)
    view[axis] = -1
    return torch.from_numpy(compact(layer)).view(view).expand(shape)
