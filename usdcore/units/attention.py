"""Attention units from the cores that the label pass met: heads, and the dims inside each head."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from usdcore.units.drafts import Components, Draft, UnitDraft, assign, components
from usdcore.units.layers import distinct

if TYPE_CHECKING:
    from usdcore.units.labelling import Core, Labelling
    from usdcore.units.layers import IntArray

    BoolArray = np.typing.NDArray[np.bool_]


def attention_drafts(flow: Labelling, coarse: Components) -> list[UnitDraft]:
    """One unit for each core, in order of execution, with the groups heads, qk_dims and v_dims."""
    fine = components(flow, is_fine=True)
    is_free = np.bincount(fine.of)[fine.of] == 1  # labels that nothing is tied to
    is_made = np.ones(flow.num_labels, dtype=bool)
    for labels in flow.padding:
        is_made[labels] = False
    return [_unit((coarse, fine), core, is_free, is_made) for core in flow.cores]


def _unit(components: tuple[Components, Components], core: Core, is_free: BoolArray, is_made: BoolArray) -> UnitDraft:
    if core.q is None:
        return _unresolved(core)
    parts = [part for part in (core.q, core.k, core.v, core.logits) if part is not None]
    labels, entries, is_clean = assign(components[0], parts)
    first = Draft("heads", len(core.q), labels, entries)
    if not is_clean:
        first.reasons.append("its heads are tied to each other, so one can't go without the others")
    if core.k is None or core.v is None or core.dims is not None:
        dims = [_refused(kind, core.dims or "") for kind in ("qk_dims", "v_dims")]
        width = core.v_shape[-1] if core.v is None else core.v.shape[1]
        return UnitDraft([first, *dims], core.op, (len(core.q), core.q.shape[1], width))
    rows = np.concatenate([core.q, core.k])
    own = [("qk_dims", rows), ("v_dims", core.v)]
    groups = [first, *(_dims(kind, components[1], table, len(core.q), is_made) for kind, table in own)]
    if not is_free[core.v].all():
        groups[2].reasons.append("its entries are tied to others, position by position")
    return UnitDraft(groups, core.op, (len(core.q), core.q.shape[1], core.v.shape[1]))


def _dims(kind: str, components: Components, rows: IntArray, num_heads: int, is_made: BoolArray) -> Draft:
    """The dims of each head that a projection makes; there may be zeros beside them. Those that are tied make one
    entry: a query's with the key's that it meets, both of a rotary pair.

    The `rows` [parts * H, d] are the labels of each head's places, those of one part (queries, keys) after the other's.
    """
    parents = np.arange(len(rows)) % num_heads
    of = np.where(is_made[rows], components.of[rows], -1)
    per_head = np.sort(of.reshape(-1, num_heads, of.shape[1]).swapaxes(0, 1).reshape(num_heads, -1), axis=1)
    is_new = per_head >= 0
    is_new[:, 1:] &= per_head[:, 1:] != per_head[:, :-1]
    ids, parent_of = per_head[is_new], np.nonzero(is_new)[0]
    labels, entries, _ = assign(components, [ids[:, None]])
    is_own = is_made[labels]  # zeros may be tied to what is made
    reasons = [] if len(distinct(ids)) == len(ids) else ["its entries are tied across heads"]
    return Draft(kind, len(ids), labels[is_own], entries[is_own], reasons, parent_of, rows, parents)


def _unresolved(core: Core) -> UnitDraft:
    """A core whose heads are not known: its shape is, where the batch axes show it."""
    shape = core.v_shape
    heads = shape[-3] if len(shape) == 4 else 1
    groups = [_refused(kind, core.reason or "") for kind in ("heads", "qk_dims", "v_dims")]
    groups[0].size = heads
    return UnitDraft(groups, core.op, (heads, shape[-1], shape[-1]))


def _refused(kind: str, reason: str) -> Draft:
    """A group of which nothing is known but why."""
    nothing = np.zeros(0, np.int64)
    return Draft(kind, 0, nothing, nothing, [reason])
