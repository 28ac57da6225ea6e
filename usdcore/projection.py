"""From scores to a plan that meets the budget: one threshold for all entries, then down to single neurons."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from usdcore.errors import UsdcoreError
from usdcore.plans import Drop, Keep

if TYPE_CHECKING:
    from collections.abc import Mapping

    from usdcore.costs import Tree
    from usdcore.units.types import Units

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Limits:
    """What may be spent, in the tree's metric: `executed` at the gates' measured rates, `static` with all gates on."""

    executed: float
    static: float | None = None


@dataclass(frozen=True)
class Projection:
    """The plan's records, how many of the worst entries fell, the cost by the strategies' own signs and at the end."""

    records: list[Keep | Drop]
    fallen: int
    before: float
    after: float


@dataclass
class _Choice:
    keeps: dict[str, npt.NDArray[np.bool_]]
    dropped: set[str] = field(default_factory=set)


class Projector:
    """Chooses what to keep by score under limits. An entry below the threshold goes; every group keeps its best
    entry.
    """

    def __init__(self, units: Units, tree: Tree, scores: Mapping[str, Floats], rates: Mapping[str, float]) -> None:
        self.tree = tree
        self.rates = dict(rates)
        self.branch_scores = {name: float(s) for name, s in scores.items() if name in units.branches}
        self.groups = {name: units.groups[name] for name in scores if name in units.groups}
        self.group_scores = {name: np.asarray(scores[name], dtype=np.float64).reshape(-1) for name in self.groups}
        self._rank()
        self.branch_of = {g.name: unit.branch.name for unit in units.all if unit.branch for g in unit.groups}

    def project(self, limits: Limits, drops: tuple[str, ...] = ()) -> Projection:
        """Errors: the limits can't be met even with everything off; the message says the least that can be reached."""
        low, high = 0, self.count
        if not self._fits(self._without(high, drops), limits):
            least = self._spent(self._without(high, drops))
            msg = (
                f"the budget can't be reached: with everything removed that may be, {least / self.tree.total:.1%} of "
                f"the model's {self.tree.metric} are left and {limits.executed / self.tree.total:.1%} were asked for"
            )
            raise UsdcoreError(msg)
        while low < high:
            middle = (low + high) // 2
            low, high = (low, middle) if self._fits(self._without(middle, drops), limits) else (middle + 1, high)
        choice = self._fill(self._without(high, drops), limits)
        before = self._spent(self._without(self.negative, drops))
        return Projection(self._records(choice), high, before, self._spent(choice))

    def _rank(self) -> None:
        """One order of all entries, worst first; equal scores in a fixed random order, so that no layer comes first."""
        names = [*self.group_scores, *self.branch_scores]
        scores = [*self.group_scores.values(), *(np.array([score]) for score in self.branch_scores.values())]
        flat = np.concatenate([np.zeros(0), *scores])
        order = np.lexsort((np.random.default_rng(0).permutation(len(flat)), flat))
        rank = np.empty(len(flat), dtype=np.int64)
        rank[order] = np.arange(len(flat))
        self.count, self.negative = len(flat), int((flat < 0).sum())
        self.ranks = dict(zip(names, np.split(rank, np.cumsum([len(s) for s in scores])[:-1]), strict=True))

    def _without(self, number: int, drops: tuple[str, ...]) -> _Choice:
        """The choice without the `number` worst entries; each group keeps its best one all the same."""
        dropped = set(drops) | {name for name in self.branch_scores if self.ranks[name][0] < number}
        keeps = {}
        for name in self.group_scores:
            keeps[name] = self.ranks[name] >= number
            keeps[name][int(np.argmax(self.ranks[name]))] = True
        return _Choice(keeps, dropped)

    def _spent(self, choice: _Choice, static: bool = False) -> float:
        kept = {name: int(keep.sum()) for name, keep in choice.keeps.items()}
        if self.tree.metric == "params" or static:
            return self.tree.decided(kept | dict.fromkeys(choice.dropped, 0))
        return self.tree.executed(self.rates | dict.fromkeys(choice.dropped, 0.0), kept)

    def _fits(self, choice: _Choice, limits: Limits) -> bool:
        if limits.static is not None and self._spent(choice, static=True) > limits.static:
            return False
        return self._spent(choice) <= limits.executed

    def _fill(self, choice: _Choice, limits: Limits) -> _Choice:
        """Put back single entries, best first, as long as they fit: a threshold alone leaves a whole head's slack."""
        left = limits.executed - self._spent(choice)
        left_static = np.inf if limits.static is None else limits.static - self._spent(choice, static=True)
        waiting = []
        for name, keep in choice.keeps.items():
            branch = self.branch_of.get(name, "")
            each = float(self.tree.entry_cost(self.groups[name]))
            rate = 1.0 if self.tree.metric == "params" else self.rates.get(branch, 1.0)
            if branch not in choice.dropped:
                waiting += [
                    (-self.group_scores[name][i], name, int(i), each * rate, each) for i in np.flatnonzero(~keep)
                ]
        for _, name, entry, price, static_price in sorted(waiting):
            if price <= left and static_price <= left_static:
                choice.keeps[name][entry] = True
                left, left_static = left - price, left_static - static_price
        return choice

    def _records(self, choice: _Choice) -> list[Keep | Drop]:
        records: list[Keep | Drop] = [Drop(branch=name) for name in sorted(choice.dropped)]
        for name, keep in choice.keeps.items():
            if self.branch_of.get(name) not in choice.dropped and not keep.all():
                records.append(Keep(group=name, indices=tuple(int(i) for i in np.flatnonzero(keep))))
        return records
