"""Plans over groups that lie inside the entries of another, as a head's dims do.

A plan counts in the entries of its base, and knows no sizes: which dims went with a head that was removed, only the
units of the model can tell. So a plan that cuts both is continued here.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from usdcore.errors import UsdcoreError
from usdcore.plans import Keep, Plan

if TYPE_CHECKING:
    from collections.abc import Iterable

    from usdcore.plans import Attach, Drop
    from usdcore.units.types import Group, Units


def continued(plan: Plan, records: Iterable[Keep | Drop | Attach], units: Units) -> Plan:
    """`plan` followed by `records`, whose indices count in the model that `plan` gives; `units` are that model's.

    The same as `plan.then(records)`, for nested groups too. Errors: an index out of range, a plan that is not the one
    that the model was made with.
    """
    nested = {group.name: group for inside in units.nested.values() for group in inside}
    placed: list[Keep | Drop | Attach] = []
    for record in _closed(plan, list(records), units):
        if isinstance(record, Keep) and record.group in nested:
            placed.append(_placed(record, left(plan, nested[record.group])))
        else:
            placed += plan.then([record]).records[len(plan.records) :]
    return plan.model_copy(update={"records": (*plan.records, *placed)})


def left(plan: Plan, group: Group) -> tuple[int, ...] | None:
    """Where the entries of a nested group, of the model that `plan` gives, stood in the base; None if it is whole.

    Where the plan does not say so itself, each entry of the parent's had equally many in the base, side by side.
    """
    kept = plan.keep(group.name)
    parents = plan.keep(group.parent or "")
    if parents is None or (kept is not None and len(kept) == group.size):
        return kept
    assert group.slots is not None
    width = group.slots.per_parent
    within = (parent * width + i for parent in parents for i in range(width))
    found = tuple(sorted(within if kept is None else set(kept).intersection(within)))
    if len(found) != group.size:
        msg = (
            f"{group.name}: the model has {group.size} entries, and by its plan it should have {len(found)}; give the "
            f"plan that the model was made with"
        )
        raise UsdcoreError(msg)
    return found


def _closed(plan: Plan, records: list[Keep | Drop | Attach], units: Units) -> list[Keep | Drop | Attach]:
    """Say what is left of a nested group wherever a plan that speaks of it, or a model that shows it, loses parents."""
    cut = Plan(records=tuple(records))
    for group in (group for inside in units.nested.values() for group in inside):
        parent = group.parent or ""
        parents, own = cut.keep(parent), cut.keep(group.name)
        assert group.parent_of is not None
        assert group.slots is not None
        counts = np.bincount(group.parent_of, minlength=units.groups[parent].size)
        is_cut = bool((counts != group.slots.per_parent).any())
        if parents is None or not (is_cut or own is not None or plan.keep(group.name) is not None):
            continue
        stays = [i for i in (range(group.size) if own is None else own) if group.parent_of[i] in parents]
        if not stays:
            msg = f"{group.name}: nothing would be left in the {parent} that stay; drop the branch instead"
            raise UsdcoreError(msg)
        records = [r for r in records if not (isinstance(r, Keep) and r.group == group.name)]
        records.append(Keep(group=group.name, indices=tuple(stays)))
    return records


def _placed(record: Keep, here: tuple[int, ...] | None) -> Keep:
    if here is None:
        return record
    if record.indices[-1] >= len(here):
        msg = f"{record.group}: index {record.indices[-1]} is out of range, {len(here)} entries are left"
        raise UsdcoreError(msg)
    return Keep(group=record.group, indices=tuple(here[i] for i in record.indices))
