"""From drafts to the types that the rest of the program uses: reasons, mask points, costs and names."""

from __future__ import annotations

from collections import Counter
from itertools import takewhile
from typing import TYPE_CHECKING

import numpy as np

from usdcore.units.layers import IntArray, axes, compact
from usdcore.units.types import Attribute, Group, MaskPoint, Member, Slots

if TYPE_CHECKING:
    from usdcore.units.labelling import Labelling
    from usdcore.units.tally import Tally

NUM_REASONS = 3


def explain(tally: Tally) -> None:
    """Add to each draft the reasons that the label pass met: norms over its entries, ops that it does not know."""
    flow = tally.flow
    for taint in flow.taints:
        for group in tally.groups_of(tally.label_entry[taint.labels]):
            tally.drafts[group].reasons.append(taint.reason)
    for norm in flow.norms:
        entries = np.where(norm.labels >= 0, tally.label_entry[norm.labels], -1)
        if not _is_even(entries, norm.dims):
            for group in tally.groups_of(entries):
                reason = f"its entries are normalised together by {flow.where(flow.trace.ops[norm.op])}"
                tally.drafts[group].reasons.append(reason)


def mask_point(flow: Labelling, tally: Tally, group: int) -> MaskPoint | str:
    """Where a factor on the entries acts: the module that alone reads them; or why there is no such place."""
    trace = flow.trace
    readers = list(tally.readers[group])
    if len(readers) != 1:
        return f"{len(readers)} projections read its entries, not one"
    op = trace.ops[readers[0]]
    call = trace.calls[op.call]
    before = trace.values[op.inputs[0]].producer
    if before >= 0 and trace.ops[before].name == "ragged_pack":
        op = trace.ops[before]  # a part of the reading module
    if not call.path or not call.inputs or call.inputs[0] != op.inputs[0]:
        return f"{flow.where(op)} reads its entries, but not as the input of a module"
    if sum(other.path == call.path for other in trace.calls) > 1:
        return f"{call.path} reads its entries and runs more than once"
    entry_of = np.full(flow.shape(op.inputs[0])[-1], -1)
    for layer in flow.labels.get(op.inputs[0], ()):
        if axes(layer) == {layer.ndim - 1}:
            entries = tally.entries(group, compact(layer).ravel())
            entry_of = np.where(entry_of < 0, entries, entry_of)
    if (entry_of < 0).all():
        return f"{flow.where(op)} reads its entries, but not along the last axis"
    return MaskPoint(call.path, entry_of)


def build_group(
    tally: Tally,
    group: int,
    name: str,
    attributes: tuple[Attribute, ...] = (),
    parent: str | None = None,
    slots: Slots | str | None = None,
    nested: Group | None = None,
) -> Group:
    """The finished group `group` of a tally. `slots` are its places in `parent`; `nested` is the group inside it."""
    flow, draft = tally.flow, tally.drafts[group]
    members = tally.members(group)
    mask = mask_point(flow, tally, group) if draft.kind != "qk_dims" and len(draft.labels) else None
    reasons = list(draft.reasons)
    reasons += [why for why in (mask, slots) if isinstance(why, str)]
    tensors = Counter(member.tensor for member in members)
    if any(times > 1 for times in tensors.values()):
        reasons.append("its entries lie along two axes of one parameter, so their cost is not proportional")
    macs, params = tally.macs(group), _params(flow, draft.size, members)
    own_macs, own_params = macs, params
    if nested is not None and nested.reason is None and nested.parent_of is not None:
        inside = np.bincount(nested.parent_of, minlength=draft.size)
        own_macs, own_params = macs - inside * nested.macs_per_entry, params - inside * nested.params_per_entry
    if len(np.unique(own_macs)) > 1 or len(np.unique(own_params)) > 1:
        reasons.append("its entries do not all cost the same")
    return Group(
        name=name,
        kind=draft.kind,
        size=draft.size,
        members=members,
        attributes=attributes,
        mask=mask if isinstance(mask, MaskPoint) else None,
        macs_per_entry=_mean(macs),
        params_per_entry=_mean(params),
        reason="; ".join([*dict.fromkeys(reasons)][:NUM_REASONS]) or None,
        parent_of=draft.parent_of,
        parent=parent,
        slots=slots if isinstance(slots, Slots) else None,
        own_macs=_mean(own_macs),
        own_params=_mean(own_params),
    )


def _params(flow: Labelling, size: int, members: tuple[Member, ...]) -> IntArray:
    """The parameters of each entry."""
    params = np.zeros(size, np.int64)
    for member in members:
        numel = flow.trace.parameters.get(member.tensor, 0)
        np.add.at(params, member.entry_of[member.entry_of >= 0], numel // len(member.entry_of))
    return params


def _mean(costs: IntArray) -> int:
    return int(costs.sum()) // max(len(costs), 1)


def place(flow: Labelling, ops: set[int]) -> str:
    """The deepest module that holds all of some ops."""
    common: list[str] | None = None
    for op in ops:
        path = flow.trace.path(flow.trace.ops[op]).split(".")
        same = takewhile(lambda pair: pair[0] == pair[1], zip(path, common or path, strict=False))
        common = [name for name, _ in same]
        if not common:
            break
    return ".".join(common or [])


def params_of(flow: Labelling, ops: set[int]) -> int:
    """The number of parameters that some ops read directly."""
    names = {flow.trace.values[v].tensor for op in ops for v in flow.trace.ops[op].inputs}
    return sum(numel for name, numel in flow.trace.parameters.items() if name in names)


def _is_even(entries: IntArray, dims: tuple[int, ...]) -> bool:
    """Whether the entry is the same at all positions that are normalised together."""
    return all(bool((entries == np.take(entries, [0], axis=dim)).all()) for dim in dims)
