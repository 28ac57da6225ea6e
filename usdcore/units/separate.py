"""Groups whose costs depend on each other can't both be pruned: a cost is so much for each entry of each group.

A weight between two groups (a chain of three projections, say) costs as much as the product of what is left of both.
"""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

from usdcore.units.masks import mask_points

if TYPE_CHECKING:
    from usdcore.units.tally import Tally


def separate(tally: Tally) -> None:
    """Of groups that share an op, let the one that costs most be prunable, and give the others a reason.

    A group of one entry is none of them: nothing of it can go.
    """
    flow, shared = tally.flow, _shared(tally)
    costs = {group: int(tally.macs(group).sum()) for groups in shared.values() for group in groups}
    is_open = {group: _is_open(tally, group) for group in costs}
    for op, groups in sorted(shared.items()):
        ranked = sorted((group for group in groups if is_open[group]), key=lambda group: (-costs[group], group))
        for group in ranked[1:]:
            is_open[group] = False
            reason = f"{flow.where(flow.trace.ops[op])} has entries of another group too, so their costs are not apart"
            tally.drafts[group].reasons.append(reason)


def _is_open(tally: Tally, group: int) -> bool:
    draft = tally.drafts[group]
    return draft.size > 1 and not draft.reasons and not isinstance(mask_points(tally.flow, tally, group), str)


def _shared(tally: Tally) -> dict[int, set[int]]:
    """The groups that each op with a cost holds entries of, where these are several."""
    times = Counter(op for ops in tally.ops for op in ops)
    found: dict[int, set[int]] = {}
    for share in tally.flow.shares:
        if times[share.op] > 1:
            groups = tally.groups_of(tally.label_entry[share.labels[share.labels >= 0]])
            found.setdefault(share.op, set()).update(groups)
    return {op: groups for op, groups in found.items() if len(groups) > 1}
