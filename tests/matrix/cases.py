"""What is asked of a model: half of the entries of every group of some kinds, half of the branches, at random."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from usdcore.plans import Base, Drop, Keep, Plan
from usdcore.units.types import Group, Units

#: Case -> the kinds of groups that are cut to half; "branches" are removed, half of them.
CASES: dict[str, tuple[str, ...]] = {
    "A": ("qk_dims", "v_dims", "hidden"),
    "B": ("heads", "hidden"),
    "C": ("heads", "qk_dims", "v_dims", "hidden"),
    "D": ("branches",),
    "BD": ("heads", "hidden", "branches"),
}
WORDS = {
    "A": "half of the dims of each head and of the neurons",
    "B": "half of the heads and of the neurons",
    "C": "half of the heads, of the dims of each head and of the neurons",
    "D": "half of the residual branches removed",
    "BD": "B and D together",
}


@dataclass(frozen=True)
class Asked:
    """One case of one model: what can be done of it as a plan, and what can't, with the reasons.

    `single` are groups of one entry, which has to stay.
    """

    plan: Plan
    names: tuple[str, ...]
    refused: dict[str, str] = field(default_factory=dict)
    single: tuple[str, ...] = ()


def ask(units: Units, case: str, seed: int, base: Base | None = None) -> Asked:
    """The plan of a case, at indices drawn from the seed. Of branches, one attention and one other at least."""
    rng = np.random.default_rng(seed)
    records: list[Keep | Drop] = []
    refused: dict[str, str] = {}
    single: list[str] = []
    for kind in CASES[case]:
        for name, group in units.groups.items() if kind != "branches" else ():
            if group.kind != kind:
                continue
            if group.reason is not None:
                refused[name] = group.reason
            elif len(kept := half(group, rng)) == group.size:
                single.append(name)
            else:
                records.append(Keep(group=name, indices=kept))
    if "branches" in CASES[case]:
        refused |= {name: branch.reason for name, branch in units.branches.items() if branch.reason is not None}
        records += [Drop(branch=name) for name in _branches(units, rng)]
    names = tuple(r.group if isinstance(r, Keep) else r.branch for r in records)
    return Asked(Plan(base=base, records=tuple(records)), names, refused, tuple(single))


def half(group: Group, rng: np.random.Generator) -> tuple[int, ...]:
    """Half of a group's entries at random; of dims, half of those of each head. One at least stays."""
    parents = np.zeros(group.size, np.int64) if group.parent_of is None else group.parent_of
    kept: list[int] = []
    for parent in np.unique(parents):
        own = np.flatnonzero(parents == parent)
        kept += rng.choice(own, max(1, len(own) // 2), replace=False).tolist()
    return tuple(sorted(kept))


def _branches(units: Units, rng: np.random.Generator) -> list[str]:
    """Half of the branches that can go, in the order of execution."""
    gateable = [name for name, branch in units.branches.items() if branch.reason is None]
    if not gateable:
        return []
    attention = {unit.branch.name for unit in units.attention if unit.branch is not None}
    sides = [[b for b in gateable if b in attention], [b for b in gateable if b not in attention]]
    chosen = {str(rng.choice(side)) for side in sides if side}
    rest = [b for b in gateable if b not in chosen]
    more = max(0, (len(gateable) + 1) // 2 - len(chosen))
    chosen |= {str(b) for b in rng.choice(rest, more, replace=False)} if more else set()
    return [b for b in gateable if b in chosen]
