"""What a plan saves, and with what: branches, heads, dims of heads, neurons, channels of the residual stream."""

from __future__ import annotations

from typing import TYPE_CHECKING

from usdcore.costs import Metric, Tree, cost
from usdcore.plans import Drop, Keep, Plan

if TYPE_CHECKING:
    from usdcore.units.types import Units


def removed(units: Units, plan: Plan, metric: Metric = "macs") -> dict[str, float]:
    """Shares of the dense model's cost that go with each kind: `branches`, then every kind of group that is cut.

    `units` are the base model's. What two kinds share (the dims of a head that goes) counts for the one that comes
    first in the order of the result, so that the shares add up to what is saved.
    """
    kinds: dict[str, list[Keep | Drop]] = {"branches": []}
    for group in units.groups.values():
        kinds.setdefault(group.kind, [])
    for record in plan.records:
        if isinstance(record, Drop):
            kinds["branches"].append(record)
        elif isinstance(record, Keep):
            cut = units.group(record.group)
            assert cut is not None
            kinds.setdefault(cut.kind, []).append(record)
    total, found, records = Tree(units, metric).total, {}, []
    before = total
    for kind, own in kinds.items():
        records += own
        counted = cost(units, Plan(records=tuple(records)))
        after = counted.macs if metric == "macs" else counted.params
        if own or kind == "branches":
            found[kind] = (before - after) / total
        before = after
    return found
