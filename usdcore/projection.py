"""From scores to a plan that meets the budget: one threshold for all entries, then down to single neurons."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from usdcore.costs import counts
from usdcore.errors import UsdcoreError
from usdcore.plans import Drop, Keep

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from usdcore.costs import Tree
    from usdcore.units.types import Group, Units

Bools = npt.NDArray[np.bool_]
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
    """What is kept of each group that has scores: an entry inside another one only while that one is kept."""

    keeps: dict[str, Bools]
    dropped: set[str]


class Projector:
    """Chooses what to keep by score under limits. An entry below the threshold goes; every group keeps its best entry,
    and every kept entry the best of those inside it.
    """

    def __init__(self, units: Units, tree: Tree, scores: Mapping[str, Floats], rates: Mapping[str, float]) -> None:
        self.tree = tree
        self.rates = dict(rates)
        self.units, self.nested = units, units.nested
        self.branch_scores = {name: float(s) for name, s in scores.items() if name in units.branches}
        self.groups = {name: units.groups[name] for name in scores if name in units.groups}
        self.group_scores = {name: np.asarray(scores[name], dtype=np.float64).reshape(-1) for name in self.groups}
        self._rank()
        self.safe = {name: self._safe(group) for name, group in self.groups.items()}
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
        """One order of all entries, worst first. Equal scores fall in a fixed random order, so that no layer comes
        first; whole branches last.
        """
        names = [*self.group_scores, *self.branch_scores]
        scores = [*self.group_scores.values(), *(np.array([score]) for score in self.branch_scores.values())]
        flat = np.concatenate([np.zeros(0), *scores])
        is_branch = np.arange(len(flat)) >= len(flat) - len(self.branch_scores)
        order = np.lexsort((np.random.default_rng(0).permutation(len(flat)), is_branch, flat))
        rank = np.empty(len(flat), dtype=np.int64)
        rank[order] = np.arange(len(flat))
        self.count, self.negative = len(flat), int((flat < 0).sum())
        self.ranks = dict(zip(names, np.split(rank, np.cumsum([len(s) for s in scores])[:-1]), strict=True))

    def _without(self, number: int, drops: tuple[str, ...]) -> _Choice:
        """The choice without the `number` worst entries; each group keeps its best one all the same."""
        dropped = set(drops) | {name for name in self.branch_scores if self.ranks[name][0] < number}
        wanted = {name: (self.ranks[name] >= number) | self.safe[name] for name in self.groups}
        keeps = {name: keep & self._may_stay(self.groups[name], wanted) for name, keep in wanted.items()}
        return _Choice(keeps, dropped)

    def _safe(self, group: Group) -> Bools:
        """The entries that stay at any threshold: the best in each entry of the parent, or the best of all.

        An entry that holds nothing (a head without dims) does not stay for its group's sake.
        """
        ranks, inside = self.ranks[group.name], self.nested.get(group.name)
        if inside is not None:
            ranks = np.where(np.isin(np.arange(group.size), np.asarray(inside.parent_of)), ranks, -1)
        within = np.zeros(group.size, np.int64) if group.parent_of is None else group.parent_of
        best = np.full(int(within.max()) + 1, -1)
        np.maximum.at(best, within, ranks)
        return np.asarray(ranks == best[within])

    def _may_stay(self, group: Group, keeps: Mapping[str, Bools]) -> Bools:
        """The entries of a group that lie in no entry that is gone."""
        if group.parent is None or group.parent not in keeps:
            return np.ones(group.size, dtype=bool)
        assert group.parent_of is not None
        return keeps[group.parent][group.parent_of]

    def _spent(self, choice: _Choice, static: bool = False) -> float:
        kept = counts(self.units, {name: np.flatnonzero(keep) for name, keep in choice.keeps.items()})
        if self.tree.metric == "params" or static:
            return self.tree.decided(kept | dict.fromkeys(choice.dropped, 0))
        return self.tree.executed(self.rates | dict.fromkeys(choice.dropped, 0.0), kept)

    def _fits(self, choice: _Choice, limits: Limits) -> bool:
        if limits.static is not None and self._spent(choice, static=True) > limits.static:
            return False
        return self._spent(choice) <= limits.executed

    def _fill(self, choice: _Choice, limits: Limits) -> _Choice:
        """Put back single entries, best first, as long as they fit: a threshold alone leaves a whole head's slack.

        An entry comes back with the least that has to be inside it, and never before the one that it lies in.
        """
        left = limits.executed - self._spent(choice)
        left_static = np.inf if limits.static is None else limits.static - self._spent(choice, static=True)
        for *_, name, entry in sorted(self._waiting(choice)):
            group = self.groups[name]
            if choice.keeps[name][entry] or not self._may_stay(group, choice.keeps)[entry]:
                continue
            inside = self._least_inside(group, entry)
            nested = self.nested.get(name)
            static_price = float(self.tree.entry_cost(group))
            static_price += self.tree.entry_cost(nested) * int(inside.sum()) if nested is not None else 0
            price = static_price * self._rate(name)
            if price <= left and static_price <= left_static:
                choice.keeps[name][entry] = True
                if nested is not None and nested.name in choice.keeps:
                    choice.keeps[nested.name] |= inside
                left, left_static = left - price, left_static - static_price
        return choice

    def _waiting(self, choice: _Choice) -> Iterator[tuple[float, int, float, str, int]]:
        """The entries that are gone, to be sorted: best first, each after the one that it lies in."""
        for name, keep in choice.keeps.items():
            group, scores = self.groups[name], self.group_scores[name]
            if self.branch_of.get(name, "") in choice.dropped:
                continue
            bounded, level = scores, int(group.parent is not None)
            if group.parent is not None and group.parent in self.group_scores:
                bounded = np.minimum(scores, self.group_scores[group.parent][group.parent_of])
            yield from ((-bounded[i], level, -scores[i], name, int(i)) for i in np.flatnonzero(~keep))

    def _least_inside(self, group: Group, entry: int) -> Bools:
        """What comes back with an entry, of the group nested in its group: the best of it, or all where it has no
        scores.
        """
        nested = self.nested.get(group.name)
        if nested is None:
            return np.zeros(0, dtype=bool)
        inside = np.asarray(nested.parent_of == entry)
        return inside & self.safe[nested.name] if nested.name in self.safe else inside

    def _rate(self, name: str) -> float:
        return 1.0 if self.tree.metric == "params" else self.rates.get(self.branch_of.get(name, ""), 1.0)

    def _records(self, choice: _Choice) -> list[Keep | Drop]:
        records: list[Keep | Drop] = [Drop(branch=name) for name in sorted(choice.dropped)]
        for name, keep in choice.keeps.items():
            if self.branch_of.get(name) not in choice.dropped and not keep.all():
                records.append(Keep(group=name, indices=tuple(int(i) for i in np.flatnonzero(keep))))
        return records
