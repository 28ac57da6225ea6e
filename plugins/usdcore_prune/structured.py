"""`prune`: removes what matters least, one-shot or after a phase of training."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from usdcore.costs import Tree
from usdcore.errors import UsdcoreError
from usdcore.strategy import Attachment, Decision, StepContext, Strategy
from usdcore_prune.importance import Entries, noise, normalized, norms, scales, shares_below, taylor
from usdcore_prune.patterns import shares

if TYPE_CHECKING:
    from collections.abc import Mapping

    from usdcore.units.types import Group, Units
    from usdcore_prune.config import PruneConfig

#: How far below the budget `ratios` alone may end, as a share of the dense model: a run's own promise.
BELOW = 0.005


class Prune(Strategy):
    """Ranks the entries of groups; the budget, and the shares of `ratios`, say how many of them go.

    It decides about its groups alone: another strategy that acts on one of them is refused. Gates on branches compose.
    """

    composes = frozenset()

    def __init__(self, config: PruneConfig) -> None:
        super().__init__(config)
        #: By group, the entries that each one (or each parent in it) had when this strategy first saw it.
        self.whole: dict[str, int] = {}
        self.sums: dict[str, Tensor] = {}
        self.steps = 0

    def attach(self, site: Attachment) -> None:
        """Find the groups and what goes with their entries. Errors: nothing to prune; patterns that match nothing, or a
        group twice; shares that leave less than the budget asks for; a group without BatchNorm, for `bn_scale`.
        """
        config, is_new = self.config, not self.whole
        groups = {g.name: g for g in site.units.groups.values() if g.kind in config.kinds and g.reason is None}
        if config.width:
            groups |= _widths(site.units)
        names = {name: (name, name.rpartition(":")[0]) for name in groups}
        stated = shares(config.ratios, names, "prune.ratios") if groups else {}
        self.entries = {n: Entries.of(site.model, g) for n, g in groups.items() if stated.get(n) != 0}
        if not self.entries:
            msg = f"prune: there is nothing to prune in this model of what {', '.join(config.kinds)} and ratios allow"
            raise UsdcoreError(msg)
        if config.importance == "bn_scale":
            _require_scales(self.entries)
        for name, entry in self.entries.items():
            self.whole.setdefault(name, max(_per_parent(entry.group)))
        self.sizes = self._allowed(stated, site.budget.round_to)
        site.decides(self._counts(0))
        if config.ratios and is_new:
            _require_enough(site, self._counts(-1))
        self.sums, self.steps = {}, 0

    def after_backward(self, ctx: StepContext) -> None:
        """Gather gradients, where the importance needs them (after clipping, as the optimizer sees them)."""
        if self.config.importance != "taylor":
            return
        for name, entry in self.entries.items():
            found = taylor(entry, self.config.taylor_power)
            self.sums[name] = self.sums[name].to(found.device) + found if name in self.sums else found
        self.steps += 1

    def decide(self) -> Decision:
        """A ranking, and the numbers of entries that groups may be left with. Errors: `taylor` without a step."""
        if self.config.importance == "taylor" and not self.steps:
            msg = "prune: taylor needs gradients, and this phase took no step; give it epochs, or use l1 or l2"
            raise UsdcoreError(msg)
        scores = {name: self._score(name, entry) for name, entry in self.entries.items()}
        return Decision(scores, ranking=True, sizes=self.sizes)

    def state_dict(self) -> dict[str, Any]:
        """The sums of the running phase, and what shares refer to."""
        return {"sums": self.sums, "steps": self.steps, "whole": self.whole}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on gathering."""
        self.sums, self.steps, self.whole = dict(state["sums"]), state["steps"], dict(state["whole"])

    def importance(self, name: str) -> Tensor:
        """Of a group's entries, as it is now and before any normalisation, [n]."""
        entry, kind = self.entries[name], self.config.importance
        if kind == "taylor":
            return self.sums[name]
        if kind == "bn_scale":
            return scales(entry)
        if kind == "random":
            return noise(entry.group, self.config.seed)
        return norms(entry, 1 if kind == "l1" else 2)

    def _score(self, name: str, entry: Entries) -> Tensor:
        found, group = self.importance(name), entry.group
        is_cut_evenly = group.parent_of is not None and name in self.sizes
        if self.config.scope == "local" or is_cut_evenly:
            parents = None if group.parent_of is None else torch.from_numpy(group.parent_of).to(found.device)
            return shares_below(found, parents)
        return normalized(found, self.config.normalize)

    def _allowed(self, stated: Mapping[str, float], round_to: int) -> dict[str, tuple[int, ...]]:
        """How many entries a group is left with by its share: a multiple of `round_to`, except inside of heads."""
        sizes: dict[str, tuple[int, ...]] = {}
        for name in (name for name in self.entries if name in stated):
            group = self.entries[name].group
            step = round_to if group.kind in ("hidden", "width") else 1
            left = max(1, self.whole[name] - round(stated[name] * self.whole[name]))
            left = math.ceil(left / step) * step
            sizes[name] = (sum(min(own, left) for own in _per_parent(group)),)
        return sizes

    def _counts(self, which: int) -> dict[str, int]:
        """The fewest (0) or most (-1) entries that may be left of each group; those in an entry go with it."""
        groups = {name: entry.group for name, entry in self.entries.items()}
        counts = {name: self.sizes[name][which] for name in self.sizes}
        if which == 0:
            counts = {name: counts.get(name, 1) for name in groups}
        for name, group in groups.items():
            if group.parent_of is None:
                continue
            parents = len(np.unique(group.parent_of))
            left = counts.get(group.parent or "", parents)
            if name in self.sizes:
                counts[name] = self.sizes[name][which] * left // parents
            elif which == 0:
                counts[name] = left
        return counts


def _widths(units: Units) -> dict[str, Group]:
    """The widths of the residual streams that can be cut. Errors: there are none, with the reason."""
    found = {name: group for name, group in units.widths.groups.items() if group.reason is None}
    if not found:
        why = next((f"{name}: {group.reason}" for name, group in units.widths.groups.items()), units.widths.reason)
        msg = f"prune: no residual stream of this model can be made narrower: {why}; leave out width"
        raise UsdcoreError(msg)
    return found


def _per_parent(group: Group) -> list[int]:
    """The number of entries in each parent, or of all where they lie in none."""
    if group.parent_of is None:
        return [group.size]
    return [int(number) for number in np.bincount(group.parent_of) if number]


def _require_scales(entries: Mapping[str, Entries]) -> None:
    without = [name for name, entry in entries.items() if not entry.scales]
    if without:
        shown = ", ".join(without[:4]) + (f" and {len(without) - 4} more" if len(without) > 4 else "")
        msg = (
            f"prune: bn_scale needs a BatchNorm on what it ranks, and there is none on {shown}; leave these out by "
            f"heads, hidden, v_dims, qk_dims, width or ratios {{PATTERN: 0}}, or use another importance"
        )
        raise UsdcoreError(msg)


def _require_enough(site: Attachment, counts: Mapping[str, int]) -> None:
    """Errors: the stated shares alone remove more than was asked for."""
    metric, target = site.budget.metric, site.budget.target
    left = Tree(site.units, metric).decided(counts) / site.dense_total
    if left < target - BELOW:
        msg = (
            f"prune.ratios alone leave {left:.4f} of the dense model's {metric} and the budget asks for {target:g}: "
            f"set budget.{metric} to {math.ceil(left * 1e4) / 1e4:g} or less, or state smaller shares"
        )
        raise UsdcoreError(msg)
