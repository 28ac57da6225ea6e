"""From drafts to the types that the rest of the program uses: reasons, mask points, costs and names."""

from __future__ import annotations

from collections import Counter
from itertools import takewhile
from typing import TYPE_CHECKING

import numpy as np

from usdcore.units.masks import mask_points
from usdcore.units.types import Attribute, Group, MaskPoint, Member, Slots

if TYPE_CHECKING:
    from collections.abc import Sequence

    from usdcore.units.follow import Edits
    from usdcore.units.labelling import Labelling
    from usdcore.units.layers import IntArray
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
                reason = f"its entries {norm.how} {flow.where(flow.trace.ops[norm.op])}"
                tally.drafts[group].reasons.append(reason)


def build_group(
    tally: Tally,
    group: int,
    name: str,
    following: tuple[tuple[Attribute, ...], Edits] = ((), ()),
    parent: str | None = None,
    slots: tuple[Slots, tuple[MaskPoint, ...]] | str | None = None,
    nested: Sequence[Group] = (),
) -> Group:
    """The finished group `group` of a tally. `slots` are its places in `parent`; `nested` are the groups inside it."""
    flow, draft = tally.flow, tally.drafts[group]
    places, made = (None, ()) if slots is None or isinstance(slots, str) else slots
    members = [member for member in tally.members(group) if places is None or _is_laid_out(member, places)]
    masks = made or (mask_points(flow, tally, group) if len(draft.labels) else ())
    reasons = list(draft.reasons)
    reasons += [why for why in (slots, masks if slots is None or places else ()) if isinstance(why, str)]
    squares = _squares(members)
    if any((member.entry_of < 0).any() for member in squares):
        reasons.append("its entries lie along two axes of one parameter among others, so they do not all cost the same")
    macs, params = tally.macs(group), _params(flow, draft.size, [m for m in members if m not in squares])
    macs_per_pair = tally.macs_per_pair(group)
    params_per_pair = int(_params(flow, draft.size, squares[::2]).sum()) // max(draft.size, 1) ** 2
    own_macs, own_params = macs, params
    for inner in nested:
        if inner.reason is None and inner.parent_of is not None:
            inside = np.bincount(inner.parent_of, minlength=draft.size)
            own_macs = own_macs - inside * inner.macs_per_entry
            own_params = own_params - inside * inner.params_per_entry
    if (own_macs[1:] != own_macs[:-1]).any() or (own_params[1:] != own_params[:-1]).any():
        reasons.append("its entries do not all cost the same")
    return Group(
        name=name,
        kind=draft.kind,
        size=draft.size,
        members=tuple(members),
        attributes=following[0],
        edits=following[1],
        masks=() if isinstance(masks, str) else masks,
        macs_per_entry=_mean(macs) + macs_per_pair * draft.size,
        params_per_entry=_mean(params) + params_per_pair * draft.size,
        reason="; ".join([*dict.fromkeys(reasons)][:NUM_REASONS]) or None,
        parent_of=draft.parent_of,
        parent=parent,
        slots=places,
        own_macs=_mean(own_macs),
        own_params=_mean(own_params),
        macs_per_pair=macs_per_pair,
        params_per_pair=params_per_pair,
    )


def _squares(members: Sequence[Member]) -> list[Member]:
    """Those of tensors along two axes of which the entries lie, a tensor's two side by side."""
    tensors = Counter(member.tensor for member in members)
    return sorted((m for m in members if tensors[m.tensor] > 1), key=lambda member: member.tensor)


def _params(flow: Labelling, size: int, members: Sequence[Member]) -> IntArray:
    """The parameters of each entry."""
    params = np.zeros(size, np.int64)
    for member in members:
        numel = flow.trace.parameters.get(member.tensor, 0)
        np.add.at(params, member.entry_of[member.entry_of >= 0], numel // len(member.entry_of))
    return params


def _is_laid_out(member: Member, slots: Slots) -> bool:
    """Whether a tensor is one of a module that is given gaps; all others meet the zeros in between."""
    return any(member.tensor in side.tensors for side in (*slots.writers, *slots.readers))


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
