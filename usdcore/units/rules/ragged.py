"""The two ops of ragged heads (see `usdcore.ragged`): labels move with their channels, and what is filled up gets
labels of its own, so that it goes when its head goes.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch

from usdcore.units.layers import axes, compact, tidy

if TYPE_CHECKING:
    from torch import Tensor

    from usdcore.units.labelling import Labelling
    from usdcore.units.trace import Op


def place(flow: Labelling, op: Op) -> None:
    """Channel `layout[p]` to position p of an axis, zeros where it is -1."""
    layout = np.asarray(op.args[1], dtype=np.int64)
    axis = op.args[2] % len(flow.shape(op.inputs[0]))
    is_empty = layout < 0
    made = []
    for layer in flow.labels.get(op.inputs[0], ()):
        moved = _picked(layer, np.maximum(layout, 0), axis)
        if axes(layer) == {axis}:
            base = flow.fresh(int(is_empty.sum()))
            labels = compact(moved).copy()
            np.moveaxis(labels, axis, 0)[is_empty] = np.arange(base, flow.num_labels).reshape(
                -1, *[1] * (labels.ndim - 1)
            )
            flow.padding.append(np.arange(base, flow.num_labels))
            moved = torch.from_numpy(labels).expand(moved.shape)
        made.append(moved)
    flow.labels[op.outputs[0]] = tuple(made)


def pack(flow: Labelling, op: Op) -> None:
    """The channels at `positions` of an axis, side by side."""
    positions = np.asarray(op.args[1], dtype=np.int64)
    axis = op.args[2] % len(flow.shape(op.inputs[0]))
    flow.labels[op.outputs[0]] = tuple(_picked(layer, positions, axis) for layer in flow.labels.get(op.inputs[0], ()))


def _picked(layer: Tensor, positions: np.typing.NDArray[np.int64], axis: int) -> Tensor:
    if axis in axes(layer):
        return tidy(layer.index_select(axis, torch.from_numpy(positions)))
    shape = list(layer.shape)
    shape[axis] = len(positions)
    return layer.narrow(axis, 0, 1).expand(shape)
