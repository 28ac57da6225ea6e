"""Attention units from the cores that the label pass met: heads, and the dims inside each head."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from usdcore.units.drafts import Draft, UnitDraft, assign

if TYPE_CHECKING:
    from usdcore.units.labelling import Core, Labelling
    from usdcore.units.layers import IntArray

RAGGED = (
    "heads that differ in their {} width need an attention with a width of its own for each head, "
    "which the model's code does not have"
)


def attention_drafts(flow: Labelling, component: IntArray) -> list[UnitDraft]:
    """One unit for each core, in order of execution, with the groups heads, qk_dims and v_dims."""
    return [_unit(component, core) for core in flow.cores]


def _unit(component: IntArray, core: Core) -> UnitDraft:
    if core.q is None or core.k is None or core.v is None:
        return _unresolved(core)
    labels, entries, is_clean = assign(component, [core.q, core.k, core.v])
    first = Draft("heads", len(core.q), labels, entries)
    if not is_clean:
        first.reasons.append("its heads are tied to each other, so one can't go without the others")
    groups = [first, _dims("qk_dims", component, [core.q, core.k]), _dims("v_dims", component, [core.v])]
    return UnitDraft(groups, core.op, (len(core.q), core.q.shape[1], core.v.shape[1]))


def _dims(kind: str, component: IntArray, tables: list[IntArray]) -> Draft:
    """The dims of each head; dims that are tied (a rotary pair) make one entry."""
    per_head = [np.unique(np.concatenate([component[table[h]] for table in tables])) for h in range(len(tables[0]))]
    ids = np.concatenate(per_head)
    parent_of = np.repeat(np.arange(len(per_head)), [len(ids) for ids in per_head])
    labels, entries, _ = assign(component, [ids[:, None]])
    return Draft(kind, len(ids), labels, entries, [RAGGED.format(kind[:-5].replace("qk", "q and k"))], parent_of)


def _unresolved(core: Core) -> UnitDraft:
    """A core whose heads are not known: its shape is, where the batch axes show it."""
    shape = core.v_shape
    heads = shape[-3] if len(shape) == 4 else 1
    nothing = np.zeros(0, np.int64)
    groups = [Draft(kind, 0, nothing, nothing, [core.reason or ""]) for kind in ("heads", "qk_dims", "v_dims")]
    groups[0].size = heads
    return UnitDraft(groups, core.op, (heads, shape[-1], shape[-1]))
