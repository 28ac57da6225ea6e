"""Multiply-accumulates (MACs; the papers' "FLOPs") and parameters over the tree of sites: model > branch > group
entries.

Counted as torch's FLOP counter counts (matrix products, convolutions, attention's two products; halved): norms,
activations, softmax and biases are free. A branch costs a fixed part plus so much per kept entry of its groups, so

    model = fixed + sum over branches of keep_branch * (fixed_branch + sum over groups of macs_per_entry *
    sum(keep_group))

With a sample axis the mean over samples is taken of the cost of each sample's decisions, never the cost of the mean.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import numpy as np
import torch
from torch import Tensor

if TYPE_CHECKING:
    from collections.abc import Mapping

    from usdcore.plans import Plan
    from usdcore.units.types import Group, Unit, Units

Metric = Literal["macs", "params"]


@dataclass(frozen=True)
class Cost:
    """`macs` per image, `params` counted once."""

    macs: int
    params: int


@dataclass(frozen=True)
class _Part:
    """One unit's share of the tree. `branch` is None where the unit is no residual branch: it then always runs."""

    branch: str | None
    fixed: int
    groups: tuple[tuple[str, int, int], ...]  # name, size, cost per entry


def cost(units: Units, plan: Plan | None = None) -> Cost:
    """What the model costs, or would cost once `plan` (static part; indices of this model) is applied. Exact."""
    keeps: dict[str, int] = {}
    if plan is not None:
        keeps = {name: len(kept) for name, kept in plan.kept_groups.items()}
        keeps |= dict.fromkeys(plan.drops, 0)
    return Cost(Tree(units, "macs").decided(keeps), Tree(units, "params").decided(keeps))


class Tree:
    """The cost tree of a model in one metric; values are per image (macs) or once (params)."""

    def __init__(self, units: Units, metric: Metric = "macs") -> None:
        self.metric = metric
        self.total = units.macs if metric == "macs" else units.params
        owners = {branch.name for branch in units.branches.values()}
        self.parts = [_part(unit, metric, owners) for unit in units.all]
        covered = {part.branch for part in self.parts}
        self.parts += [
            _Part(branch.name, branch.macs if metric == "macs" else branch.params, ())
            for branch in units.branches.values()
            if branch.name not in covered
        ]
        whole = sum(part.fixed + sum(size * each for _, size, each in part.groups) for part in self.parts)
        self.fixed = self.total - whole

    def decided(self, keeps: Mapping[str, int]) -> int:
        """Exact cost of made decisions: `keeps` has 0 or 1 per branch and a count per group; what is not named is
        kept.
        """
        total = self.fixed
        for part in self.parts:
            if part.branch is None or keeps.get(part.branch, 1):
                total += part.fixed + sum(keeps.get(name, size) * each for name, size, each in part.groups)
        return total

    def executed(self, rates: Mapping[str, float], kept: Mapping[str, int] | None = None) -> float:
        """Expected cost when branch b runs for the share `rates[b]` of the images and groups are cut to `kept`."""
        kept = kept or {}
        total = float(self.fixed)
        for part in self.parts:
            rate = 1.0 if part.branch is None else rates.get(part.branch, 1.0)
            total += rate * (part.fixed + sum(kept.get(name, size) * each for name, size, each in part.groups))
        return total

    def expected(self, keeps: Mapping[str, Tensor], device: torch.device | None = None) -> Tensor:
        """Differentiable cost as a share of the dense model, shape [].

        `keeps`: [] or [B] per branch, [n] or [B, n] per group, values in [0, 1]; what is not named is kept whole.
        """
        device = device or next((keep.device for keep in keeps.values()), torch.device("cpu"))
        shares = [torch.full((), self.fixed / self.total, device=device)]
        for part in self.parts:
            share: Tensor | float = part.fixed / self.total
            for name, size, each in part.groups:
                keep = keeps.get(name)
                if keep is None or keep.ndim == 0:
                    count: Tensor | float = size if keep is None else keep * size
                else:
                    count = keep.float().sum(-1)
                share = share + count * (each / self.total)
            run = None if part.branch is None else keeps.get(part.branch)
            share = share if run is None else run.float() * share
            shares.append(share.mean() if isinstance(share, Tensor) else shares[0].new_tensor(share))
        return torch.stack(shares).sum()

    def entry_cost(self, group: Group) -> int:
        """What one entry of a group costs in this metric."""
        return group.macs_per_entry if self.metric == "macs" else group.params_per_entry


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
        total += rows * (part.fixed + sum(size * each for _, size, each in part.groups))
    return total


def _part(unit: Unit, metric: Metric, branches: set[str]) -> _Part:
    # Nested groups (head dims within heads) are counted by their parents.
    groups = [g for g in unit.groups if g.parent_of is None]
    each = [(g.name, g.size, g.macs_per_entry if metric == "macs" else g.params_per_entry) for g in groups]
    whole = unit.macs if metric == "macs" else unit.params
    if unit.branch is not None and unit.branch.name in branches:
        whole = unit.branch.macs if metric == "macs" else unit.branch.params
        name = unit.branch.name
    else:
        name = None
    return _Part(name, whole - sum(size * cost for _, size, cost in each), tuple(each))
