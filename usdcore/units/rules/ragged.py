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
    """Channel `layout[p]` to position p, zeros where it is -1."""
    layout = np.asarray(op.args[1], dtype=np.int64)
    is_empty = layout < 0
    made = []
    for layer in flow.labels.get(op.inputs[0], ()):
        moved = _picked(layer, np.maximum(layout, 0))
        if axes(layer) == {layer.ndim - 1}:
            base = flow.fresh(int(is_empty.sum()))
            labels = compact(moved).ravel().copy()
            labels[is_empty] = np.arange(base, flow.num_labels)
            flow.padding.append(labels[is_empty])
            moved = torch.from_numpy(labels).expand(moved.shape)
        made.append(moved)
    flow.labels[op.outputs[0]] = tuple(made)


def pack(flow: Labelling, op: Op) -> None:
    """The channels at `positions`, side by side."""
    positions = np.asarray(op.args[1], dtype=np.int64)
    flow.labels[op.outputs[0]] = tuple(_picked(layer, positions) for layer in flow.labels.get(op.inputs[0], ()))


def _picked(layer: Tensor, positions: np.typing.NDArray[np.int64]) -> Tensor:
    if layer.ndim - 1 in axes(layer):
        return tidy(layer.index_select(-1, torch.from_numpy(positions)))
    return layer.narrow(-1, 0, 1).expand(*layer.shape[:-1], len(positions))
