"""What the label pass says about an attention core: which labels belong to each of its heads.

Heads are known by one of three signs. Attention over tokens: the coarse labels on the logits. Heads that projections
mixed (talking heads): the labels that the last of these made, and through what each read, the coarse ones. Attention
over channels: the labels of q and k lie along the two last axes of the probabilities, and those of v are consumed.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from usdcore.units.labelling import Core
from usdcore.units.layers import IntArray, Layers, axes, compact, distinct

if TYPE_CHECKING:
    from torch import Tensor

    from usdcore.units.labelling import Labelling
    from usdcore.units.trace import Op

Shape = tuple[int, ...]

SHARED = "its heads share keys and values"
CHANNELS = "its attention is over channels: each dim of a head meets all the others"


def note_core(flow: Labelling, op: Op, operands: tuple[Layers, Layers], v_shape: Shape, channels: int = -1) -> None:
    """Note the core of probabilities [..., N, M] times values v_shape = [..., M, e], whose layers `operands` are.

    `channels` is the axis of the output that e became. Where the heads are known, one layer of the output says all:
    that of v (of q over channels, of the logits where heads share v), and the others end.
    """
    core = _core(flow, op, operands, v_shape)
    flow.cores.append(core)
    if core.reason is not None:
        return
    output = op.outputs[0]
    axis = len(flow.shape(output)) + channels
    if core.dims == CHANNELS:
        axis = 2 * len(flow.shape(output)) - 3 - axis
    if core.dims == SHARED:
        flow.labels[output] = tuple(x for x in flow.labels[output] if axis not in axes(x))
    else:
        flow.labels[output] = tuple(x for x in flow.labels[output] if axis in axes(x))


def _core(flow: Labelling, op: Op, operands: tuple[Layers, Layers], v_shape: Shape) -> Core:
    last = len(v_shape) - 1
    involved = flow.below((*operands[0], *operands[1]))
    logits = [x for x in operands[0] if not axes(x) & {last - 1, last}]
    values = [x for x in operands[1] if last in axes(x) and last - 1 not in axes(x)]
    found: Core | str
    if len(logits) == 1 and values:
        found = _over_tokens(flow, op, involved, v_shape, logits[0], values[0])
    elif not logits and not values:
        found = _over_channels(op, involved, v_shape, operands)
    else:
        found = "its heads can't be told apart"
    return Core(op.index, involved, v_shape, reason=f"{found} at {flow.where(op)}") if isinstance(found, str) else found


def _over_tokens(
    flow: Labelling, op: Op, involved: IntArray, v_shape: Shape, logits: Tensor, values: Tensor
) -> Core | str:
    """Heads by the labels of the logits [..., H, 1, 1] and of the values [..., H, 1, e]."""
    heads, v = _table([compact(logits)[..., 0, 0][..., None], compact(values)[..., 0, :]])
    mixed = _unmixed(flow, heads[:, 0])
    qk = None if mixed is None else flow.children(mixed[:, -1])
    if mixed is None or qk is None:
        return "its heads can't be told apart"
    q, k = np.split(qk, 2, axis=1)
    is_mixed = mixed.shape[1] > 1
    if is_mixed:
        involved = np.union1d(involved, np.concatenate([mixed.ravel(), qk[qk >= 0]]))
    if not all(_is_unique(table) for table in (mixed, q)):
        return "its heads share projections"
    if _is_unique(k) and _is_unique(v):
        return Core(op.index, involved, v_shape, q, k, v, mixed)
    if is_mixed:
        return SHARED
    return Core(op.index, involved, v_shape, q, None, None, mixed, dims=SHARED)


def _over_channels(op: Op, involved: IntArray, v_shape: Shape, operands: tuple[Layers, Layers]) -> Core | str:
    """Heads by q along the rows of the probabilities [..., H, d, d], k along their columns, v along the rows of v."""
    last = len(v_shape) - 1
    q = [x for x in operands[0] if last - 1 in axes(x) and last not in axes(x)]
    k = [x for x in operands[0] if last in axes(x) and last - 1 not in axes(x)]
    v = [x for x in operands[1] if last - 1 in axes(x) and last not in axes(x)]
    if not q or not k or not v:
        return "its heads can't be told apart"
    q_table, k_table, v_table = parts = _table(
        [compact(q[0])[..., :, 0], compact(k[0])[..., 0, :], compact(v[0])[..., :, 0]]
    )
    if not all(_is_unique(table) for table in parts):
        return "its heads share projections"
    return Core(op.index, involved, v_shape, q_table, k_table, v_table, dims=CHANNELS)


def _unmixed(flow: Labelling, heads: IntArray) -> IntArray | None:
    """The labels of heads [H], and before them those that projections mixed into these: [H, n], the coarse ones last.

    Head h of what a mixing projection makes is head h of what it reads. None where this leads to no coarse labels.
    """
    found = [heads]
    while (base := int(heads.min())) >= 0 and (read := flow.mixed.get(base)) is not None:
        if len(read) != len(heads) or not np.array_equal(np.sort(heads), base + np.arange(len(heads))):
            return None
        heads = read[heads - base]
        found.append(heads)
    return np.stack(found, axis=1) if heads.min() >= 0 else None


def _table(parts: list[IntArray]) -> list[IntArray]:
    """For arrays [..., H, n] that broadcast, the rows [H, n] of each, each combination once, in the order in which they
    lie in the core.

    That order is the host's own, so it stays when labels change: heads are numbered by it.
    """
    lead = np.broadcast_shapes(*(part.shape[:-1] for part in parts))
    flat = [np.broadcast_to(part, (*lead, part.shape[-1])).reshape(-1, part.shape[-1]) for part in parts]
    both = np.concatenate(flat, axis=1)
    if len(distinct(both[:, 0])) < len(both):
        both = both[np.sort(np.unique(both, axis=0, return_index=True)[1])]
    return np.split(both, np.cumsum([part.shape[1] for part in flat])[:-1], axis=1)


def _is_unique(table: IntArray) -> bool:
    return table.min() >= 0 and len(distinct(table)) == table.size
