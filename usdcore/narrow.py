"""What a model's units cost once residual streams are narrower: the same units, with the costs that they then have."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    from collections.abc import Mapping

    from usdcore.units.types import AttentionUnit, Branch, FeedForwardUnit, Group, Units, Widths

U = TypeVar("U", "AttentionUnit", "FeedForwardUnit")


def narrowed(units: Units, counts: Mapping[str, int]) -> Units:
    """`units` with `counts[name]` channels left of each stream's width `name`; a stream not named is whole.

    Only costs change: members and sizes are those of the model that was found. Exact for counts from 0 to the width.
    """
    widths = units.widths
    return _Narrow(widths, {name: group.size for name, group in widths.groups.items()} | dict(counts)).units(units)


class _Narrow:
    """Costs at fixed counts."""

    def __init__(self, widths: Widths, counts: Mapping[str, int]) -> None:
        self.widths = widths
        self.counts = counts

    def units(self, units: Units) -> Units:
        branches = {name: self._branch(branch) for name, branch in units.branches.items()}
        macs, params = self._both("model", "")
        return replace(
            units,
            attention=tuple(self._unit(unit, branches) for unit in units.attention),
            ffn=tuple(self._unit(unit, branches) for unit in units.ffn),
            blocks=tuple(
                replace(block, branches=tuple(branches[branch.name] for branch in block.branches))
                for block in units.blocks
            ),
            macs=macs,
            params=params,
        )

    def _unit(self, unit: U, branches: Mapping[str, Branch]) -> U:
        macs, params = self._both("unit", unit.name)
        branch = None if unit.branch is None else branches.get(unit.branch.name, unit.branch)
        groups = tuple(self._group(group) for group in unit.groups)
        return replace(unit, macs=macs, params=params, groups=groups, branch=branch)

    def _group(self, group: Group) -> Group:
        size = max(group.size, 1)
        (macs, params), (own_macs, own_params) = self._both("group", group.name), self._both("own", group.name)
        pair_macs, pair_params = self._both("pairs", group.name)
        return replace(
            group,
            macs_per_entry=(macs + pair_macs) // size,
            params_per_entry=(params + pair_params) // size,
            own_macs=own_macs // size,
            own_params=own_params // size,
            macs_per_pair=pair_macs // size**2,
            params_per_pair=pair_params // size**2,
        )

    def _branch(self, branch: Branch) -> Branch:
        macs, params = self._both("branch", branch.name)
        return replace(branch, macs=macs, params=params)

    def _both(self, what: str, name: str) -> tuple[int, int]:
        return self.widths.macs[what, name].at(self.counts), self.widths.params[what, name].at(self.counts)
