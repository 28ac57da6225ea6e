"""Attention units from the cores that the label pass met: heads, and the dims inside each head."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from usdcore.units.drafts import Draft, UnitDraft, assign
from usdcore.units.layers import IntArray

if TYPE_CHECKING:
    from usdcore.units.labelling import Core, Labelling

RAGGED = {
    "qk_dims": "heads of different widths need an attention with its own q and k width for each head, which this model's code does not have",
    "v_dims": "heads of different widths need an attention with its own v width for each head, which this model's code does not have",
}


def attention_drafts(flow: Labelling, component: IntArray) -> list[UnitDraft]:
    """One unit for each core, in order of execution, with the groups heads, qk_dims and v_dims."""
    return [_unit(flow, component, core) for core in flow.cores]


def _unit(flow: Labelling, component: IntArray, core: Core) -> UnitDraft:
    if core.q is None or core.k is None or core.v is None:
        return _unresolved(flow, core)
    heads, is_clean = assign(component, [core.q, core.k, core.v])
    first = Draft("heads", len(core.q), heads)
    if not is_clean:
        first.reasons.append("its heads are tied to each other, so one can't go without the others")
    groups = [first, _dims("qk_dims", component, [core.q, core.k]), _dims("v_dims", component, [core.v])]
    return UnitDraft(groups, core.op, (len(core.q), core.q.shape[1], core.v.shape[1]))


def _dims(kind: str, component: IntArray, tables: list[IntArray]) -> Draft:
    """The dims of each head; dims that are tied (a rotary pair) make one entry."""
    per_head = [np.unique(np.concatenate([component[table[h]] for table in tables])) for h in range(len(tables[0]))]
    ids = np.concatenate(per_head)
    parent_of = np.repeat(np.arange(len(per_head)), [len(ids) for ids in per_head])
    entry_of = np.full(len(component), -1)
    entry_of[ids] = np.arange(len(ids))
    return Draft(kind, len(ids), entry_of[component], [RAGGED[kind]], parent_of)


def _unresolved(flow: Labelling, core: Core) -> UnitDraft:
    """A core whose heads are not known: its shape is, where the batch axes show it."""
    shape = core.v_shape
    heads = shape[-3] if len(shape) == 4 else 1
    nothing = np.full(flow.num_labels, -1)
    reason = core.reason or ""
    groups = [Draft(kind, 0, nothing, [reason]) for kind in ("heads", "qk_dims", "v_dims")]
    groups[0].size = heads
    return UnitDraft(groups, core.op, (heads, shape[-1], shape[-1]))
