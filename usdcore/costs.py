"""Multiply-accumulates (MACs; the papers' "FLOPs") and parameters over the tree of sites: model > branch > group
entries.

Counted as torch's FLOP counter counts (matrix products, convolutions, attention's two products; halved): norms,
activations, softmax and biases are free. A branch costs a fixed part plus so much per kept entry of its groups, so

    model = fixed + sum over branches of keep_branch * (fixed_branch + sum over groups of own_macs * sum(keep_group))

where an entry of a nested group (a head's value dim) is kept if it is kept itself and so is the one that it lies in.
With a sample axis the mean over samples is taken of the cost of each sample's decisions, never the cost of the mean.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

import numpy as np
import torch
from torch import Tensor

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping

    from usdcore.plans import Plan
    from usdcore.units.types import Group, IntArray, Unit, Units

Metric = Literal["macs", "params"]


@dataclass(frozen=True)
class Cost:
    """`macs` per image, `params` counted once."""

    macs: int
    params: int


@dataclass(frozen=True)
class _Level:
    """A group that is no other's, with what an entry costs alone, and the group nested in it, if any."""

    group: Group
    each: int
    nested: Group | None
    nested_each: int
    maps: dict[torch.device, Tensor] = field(default_factory=dict)  # the parent of each nested entry, by device

    @property
    def whole(self) -> int:
        """The cost of all entries."""
        return self.group.size * self.each + (self.nested.size * self.nested_each if self.nested else 0)

    def decided(self, keeps: Mapping[str, int]) -> int:
        """The cost of so many entries."""
        count = keeps.get(self.group.name, self.group.size)
        if self.nested is None:
            return count * self.each
        inside = keeps.get(self.nested.name, self.nested.size * count // self.group.size)
        return count * self.each + inside * self.nested_each

    def expected(self, keeps: Mapping[str, Tensor], total: int) -> Tensor | float:
        """The cost of the kept entries as a share of `total`: a number, [] or [B]."""
        keep = _each(keeps.get(self.group.name), self.group.size)
        share = self.group.size * self.each / total if keep is None else keep.sum(-1) * (self.each / total)
        if self.nested is None:
            return share
        inside = _each(keeps.get(self.nested.name), self.nested.size)
        if keep is not None:
            within = keep[..., self._parent_of(keep.device)]
            inside = within if inside is None else inside * within
        count = self.nested.size if inside is None else inside.sum(-1)
        return share + count * (self.nested_each / total)

    def _parent_of(self, device: torch.device) -> Tensor:
        if device not in self.maps:
            assert self.nested is not None
            self.maps[device] = torch.tensor(self.nested.parent_of, device=device)
        return self.maps[device]


@dataclass(frozen=True)
class _Part:
    """One unit's share of the tree. `branch` is None where the unit is no residual branch: it then always runs."""

    branch: str | None
    fixed: int
    levels: tuple[_Level, ...]

    @property
    def whole(self) -> int:
        """The cost when everything is kept."""
        return self.fixed + sum(level.whole for level in self.levels)

    def decided(self, keeps: Mapping[str, int]) -> int:
        """The cost when so much is kept of each group."""
        return self.fixed + sum(level.decided(keeps) for level in self.levels)


def cost(units: Units, plan: Plan | None = None) -> Cost:
    """What the model costs, or would cost once `plan` (static part; indices of this model) is applied. Exact."""
    keeps: dict[str, int] = {}
    if plan is not None:
        kept = {name: np.asarray(indices, dtype=np.int64) for name, indices in plan.kept_groups.items()}
        keeps = counts(units, kept) | dict.fromkeys(plan.drops, 0)
    return Cost(Tree(units, "macs").decided(keeps), Tree(units, "params").decided(keeps))


def counts(units: Units, kept: Mapping[str, IntArray]) -> dict[str, int]:
    """How many entries are left of each group when `kept` (indices) of some groups are: those of a nested group go
    with the entry that they lie in.
    """
    found = {name: len(indices) for name, indices in kept.items()}
    for parent, group in units.nested.items():
        if parent in kept:
            assert group.parent_of is not None
            left = group.parent_of[kept[group.name]] if group.name in kept else group.parent_of
            found[group.name] = int(np.isin(left, kept[parent]).sum())
    return found


def fewest(units: Units, sites: Collection[str]) -> dict[str, int]:
    """How few entries may be left of each group among `sites`: one, or one in each entry of a parent that is whole."""
    nested = {group.name: group for group in units.nested.values()}
    found = {name: 1 for name in sites if name in units.groups}
    for name in found.keys() & nested.keys():
        if nested[name].parent not in sites:
            found[name] = len(np.unique(np.asarray(nested[name].parent_of)))
    return found


class Tree:
    """The cost tree of a model in one metric; values are per image (macs) or once (params)."""

    def __init__(self, units: Units, metric: Metric = "macs") -> None:
        self.metric = metric
        self.total = units.macs if metric == "macs" else units.params
        owners = {branch.name for branch in units.branches.values()}
        nested = units.nested
        self.parts = [_part(unit, nested, metric, owners) for unit in units.all]
        covered = {part.branch for part in self.parts}
        self.parts += [
            _Part(branch.name, branch.macs if metric == "macs" else branch.params, ())
            for branch in units.branches.values()
            if branch.name not in covered
        ]
        self.fixed = self.total - sum(part.whole for part in self.parts)

    def decided(self, keeps: Mapping[str, int]) -> int:
        """Exact cost of made decisions: `keeps` has 0 or 1 per branch and a count per group; what is not named is kept.

        The count of a nested group is of those entries whose parent is kept too. Where it is not named while its
        parent's is, a share of it goes with the parents (exact where all of these hold equally many; see `counts`).
        """
        total = self.fixed
        for part in self.parts:
            if part.branch is None or keeps.get(part.branch, 1):
                total += part.decided(keeps)
        return total

    def executed(self, rates: Mapping[str, float], kept: Mapping[str, int] | None = None) -> float:
        """Expected cost when branch b runs for the share `rates[b]` of the images and groups are cut to `kept`."""
        kept = kept or {}
        total = float(self.fixed)
        for part in self.parts:
            rate = 1.0 if part.branch is None else rates.get(part.branch, 1.0)
            total += rate * part.decided(kept)
        return total

    def expected(self, keeps: Mapping[str, Tensor], device: torch.device | None = None) -> Tensor:
        """Differentiable cost as a share of the dense model, shape [].

        `keeps`: [] or [B] per branch, [n] or [B, n] per group, values in [0, 1]; what is not named is kept whole. An
        entry of a nested group counts with its own keep times that of the entry that it lies in.
        """
        device = device or next((keep.device for keep in keeps.values()), torch.device("cpu"))
        shares = [torch.full((), self.fixed / self.total, device=device)]
        for part in self.parts:
            share: Tensor | float = part.fixed / self.total
            for level in part.levels:
                share = share + level.expected(keeps, self.total)
            run = None if part.branch is None else keeps.get(part.branch)
            share = share if run is None else run.float() * share
            shares.append(share.mean() if isinstance(share, Tensor) else shares[0].new_tensor(share))
        return torch.stack(shares).sum()

    def entry_cost(self, group: Group) -> int:
        """What one entry of a group costs in this metric, without what can be pruned of it."""
        return group.own_macs if self.metric == "macs" else group.own_params


def batch_macs(units: Units, decisions: Mapping[str, Tensor], gate_macs: int, batch_size: int) -> int:
    """Exact MACs of one skipping forward of a batch: what torch's FLOP counter shows over it, halved.

    `decisions`: 0 or 1 per branch, [] for the whole batch or [B]. Masked group entries are computed, so they count.
    """
    tree = Tree(units)
    total = (tree.fixed + gate_macs) * batch_size
    for part in tree.parts:
        keep = None if part.branch is None else decisions.get(part.branch)
        if keep is None:
            rows = batch_size
        elif keep.ndim == 0:
            rows = batch_size * int(keep.item())
        else:
            rows = int(np.count_nonzero(keep.detach().cpu().numpy()))
        total += rows * part.whole
    return total


def _part(unit: Unit, nested: Mapping[str, Group], metric: Metric, branches: set[str]) -> _Part:
    def price(group: Group) -> int:
        return group.own_macs if metric == "macs" else group.own_params

    levels = []
    for group in unit.groups:
        if group.parent_of is None:
            inside = nested.get(group.name)
            levels.append(_Level(group, price(group), inside, price(inside) if inside else 0))
    whole, name = (unit.macs if metric == "macs" else unit.params), None
    if unit.branch is not None and unit.branch.name in branches:
        whole = unit.branch.macs if metric == "macs" else unit.branch.params
        name = unit.branch.name
    return _Part(name, whole - sum(level.whole for level in levels), tuple(levels))


def _each(keep: Tensor | None, size: int) -> Tensor | None:
    """A group's keep with one factor for each entry; one factor may stand for all."""
    return None if keep is None else keep.float().expand(size) if keep.ndim == 0 else keep.float()
