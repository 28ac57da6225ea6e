"""Attention units from the cores that the label pass met: heads, and the dims inside each head."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from usdcore.units.drafts import Draft, UnitDraft, assign

if TYPE_CHECKING:
    from usdcore.units.labelling import Core, Labelling
    from usdcore.units.layers import IntArray

    BoolArray = np.typing.NDArray[np.bool_]

RAGGED = (
    "heads that differ in their q and k width need an attention with a width of its own for each head, "
    "which the model's code does not have"
)


def attention_drafts(flow: Labelling, component: IntArray) -> list[UnitDraft]:
    """One unit for each core, in order of execution, with the groups heads, qk_dims and v_dims."""
    is_free = np.bincount(component)[component] == 1  # labels that nothing is tied to
    is_made = np.ones(flow.num_labels, dtype=bool)
    for labels in flow.padding:
        is_made[labels] = False
    return [_unit(component, core, is_free, is_made) for core in flow.cores]


def _unit(component: IntArray, core: Core, is_free: BoolArray, is_made: BoolArray) -> UnitDraft:
    if core.q is None or core.k is None or core.v is None:
        return _unresolved(core)
    labels, entries, is_clean = assign(component, [core.q, core.k, core.v])
    first = Draft("heads", len(core.q), labels, entries)
    if not is_clean:
        first.reasons.append("its heads are tied to each other, so one can't go without the others")
    groups = [first, _qk_dims(component, core.q, core.k), _v_dims(component, core.v, is_made)]
    if not is_free[core.v].all():
        groups[2].reasons.append("its entries are tied to others, position by position")
    return UnitDraft(groups, core.op, (len(core.q), core.q.shape[1], core.v.shape[1]))


def _qk_dims(component: IntArray, q: IntArray, k: IntArray) -> Draft:
    """The q and k dims of each head; dims that are tied (a rotary pair) make one entry."""
    draft = _dims("qk_dims", component, [np.unique(component[np.concatenate(pair)]) for pair in zip(q, k, strict=True)])
    draft.reasons.append(RAGGED)
    return draft


def _v_dims(component: IntArray, v: IntArray, is_made: BoolArray) -> Draft:
    """The values' dims of each head that a projection makes; there may be zeros beside them."""
    draft = _dims("v_dims", component, [np.unique(component[row[is_made[row]]]) for row in v])
    draft.table = v
    return draft


def _dims(kind: str, component: IntArray, per_head: list[IntArray]) -> Draft:
    ids = np.concatenate(per_head)
    parent_of = np.repeat(np.arange(len(per_head)), [len(own) for own in per_head])
    labels, entries, _ = assign(component, [ids[:, None]])
    return Draft(kind, len(ids), labels, entries, [], parent_of)


def _unresolved(core: Core) -> UnitDraft:
    """A core whose heads are not known: its shape is, where the batch axes show it."""
    shape = core.v_shape
    heads = shape[-3] if len(shape) == 4 else 1
    nothing = np.zeros(0, np.int64)
    groups = [Draft(kind, 0, nothing, nothing, [core.reason or ""]) for kind in ("heads", "qk_dims", "v_dims")]
    groups[0].size = heads
    return UnitDraft(groups, core.op, (heads, shape[-1], shape[-1]))
