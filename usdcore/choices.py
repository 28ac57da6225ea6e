"""From scores to what would be kept: every number of worst entries that may fall gives one choice."""

from __future__ import annotations

from dataclasses import dataclass
from types import MappingProxyType
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from usdcore.units.types import Group, Units

Bools = npt.NDArray[np.bool_]
Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]


@dataclass
class Choice:
    """What is kept of each group that has scores: an entry inside another one only while that one is kept."""

    keeps: dict[str, Bools]
    dropped: set[str]


class Choices:
    """Entries and branches that have scores, in one order, the worst first. Every group keeps its best entry, and every
    kept entry the best of those inside it.

    `sizes` are the numbers of entries that a group may be left with, ascending (multiples of 8, or one number alone);
    others are left with any. Where a group holds another one, it has a single size, as may one that lies in another:
    which entries go then depends on no threshold. A group in another one that has several may also be left with all
    that lie in what is left of that one.
    """

    def __init__(
        self,
        units: Units,
        scores: Mapping[str, Floats],
        sizes: Mapping[str, tuple[int, ...]] = MappingProxyType({}),
    ) -> None:
        self.sizes = dict(sizes)
        self.nested = units.nested
        self.branch_scores = {name: float(s) for name, s in scores.items() if name in units.branches}
        found = {name: units.group(name) for name in scores}
        self.groups = {name: group for name, group in found.items() if group is not None}
        self.group_scores = {name: np.asarray(scores[name], dtype=np.float64).reshape(-1) for name in self.groups}
        self.branch_of = {g.name: unit.branch.name for unit in units.all if unit.branch for g in unit.groups}
        #: Groups in another one whose number has to be even over all of its entries together.
        self.evened = [n for n, sizes in self.sizes.items() if len(sizes) > 1 and self.groups[n].parent is not None]
        self._rank()
        self.safe = {name: self._safe(group) for name, group in self.groups.items()}

    def without(self, number: int, drops: tuple[str, ...] = ()) -> Choice:
        """The choice without the `number` worst entries, and without those beyond the size that is left below that."""
        dropped = set(drops) | {name for name in self.branch_scores if self.ranks[name][0] < number}
        wanted = {name: (self.ranks[name] >= number) | self.safe[name] for name in self.groups}
        for name in self.sizes.keys() - set(self.evened):
            left, sizes = int((self.ranks[name] >= number).sum()), self.sizes[name]
            wanted[name] = self._best(name, max((size for size in sizes if size <= left), default=sizes[0]))
        keeps = {name: keep & self.may_stay(self.groups[name], wanted) for name, keep in wanted.items()}
        return self.even(Choice(keeps, dropped))

    def even(self, choice: Choice) -> Choice:
        """The choice with the numbers of entries in others brought to the next of their sizes, below if that leaves one
        in each.
        """
        keeps = {}
        for name in self.evened:
            ranks, sizes = self._open(name, choice)
            left = int(choice.keeps[name].sum())
            keeps[name] = self._best(name, max((size for size in sizes if size <= left), default=sizes[0]), ranks)
        return Choice({**choice.keeps, **keeps}, choice.dropped)

    def may_stay(self, group: Group, keeps: Mapping[str, Bools]) -> Bools:
        """The entries of a group that lie in no entry that is gone."""
        if group.parent is None or group.parent not in keeps:
            return np.ones(group.size, dtype=bool)
        assert group.parent_of is not None
        return keeps[group.parent][group.parent_of]

    def inside(self, group: Group, entry: int) -> list[tuple[Group, Bools]]:
        """What comes back with an entry, of each group nested in its group: the best of it, or all where that one has
        no scores.
        """
        found = []
        for nested in self.nested.get(group.name, ()):
            inside = np.asarray(nested.parent_of == entry)
            found.append((nested, inside & self.safe[nested.name] if nested.name in self.safe else inside))
        return found

    def waiting(self, choice: Choice) -> list[tuple[str, int]]:
        """The entries that are gone and may come back alone: best first, each after the one that it lies in."""
        found = []
        for name, keep in choice.keeps.items():
            group, scores = self.groups[name], self.group_scores[name]
            if name in self.sizes or self.branch_of.get(name, "") in choice.dropped:
                continue
            bounded, level = scores, int(group.parent is not None)
            if group.parent is not None and group.parent in self.group_scores:
                bounded = np.minimum(scores, self.group_scores[group.parent][group.parent_of])
            found += [(-bounded[i], level, -scores[i], name, int(i)) for i in np.flatnonzero(~keep)]
        return [(name, entry) for *_, name, entry in sorted(found)]

    def larger(self, choice: Choice) -> Iterator[Choice]:
        """The choice with one group grown to its next size, in the order of the best entries that would come back."""
        steps = []
        for name in (name for name, sizes in self.sizes.items() if len(sizes) > 1):
            keep, ranks, sizes = choice.keeps[name], self.ranks[name], list(self.sizes[name])
            if name in self.evened:
                ranks, sizes = self._open(name, choice)
            larger = [size for size in sizes if size > keep.sum()]
            if larger and self.branch_of.get(name, "") not in choice.dropped:
                grown = self._best(name, larger[0], ranks)
                steps.append((-self.group_scores[name][grown & ~keep].max(), name, grown))
        for _, name, grown in sorted(steps, key=lambda step: step[:2]):
            yield Choice({**choice.keeps, name: grown}, choice.dropped)

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

    def _safe(self, group: Group) -> Bools:
        """The entries that stay at any threshold: the best in each entry of the parent, or the best of all.

        Where entries hold others (a head its dims), the best that holds some of each group nested in it: one that holds
        nothing does not stay for its group's sake.
        """
        if group.name in self.sizes and group.name not in self.evened:
            return self._best(group.name, self.sizes[group.name][0])
        nested = [np.asarray(inner.parent_of) for inner in self.nested.get(group.name, ())]
        is_safe = np.zeros(group.size, dtype=bool)
        for held in nested or [np.arange(group.size)]:
            ranks = np.where(np.isin(np.arange(group.size), held), self.ranks[group.name], -1)
            within = np.zeros(group.size, np.int64) if group.parent_of is None else group.parent_of
            best = np.full(int(within.max()) + 1, -1)
            np.maximum.at(best, within, ranks)
            is_safe |= ranks == best[within]
        return is_safe

    def _open(self, name: str, choice: Choice) -> tuple[Ints, list[int]]:
        """Of a group in another one: ranks by which its entries stay (those that have to come first, those of what is
        gone never), and how many may be left.
        """
        is_open = self.may_stay(self.groups[name], choice.keeps)
        has_to = self.safe[name] & is_open
        ranks = np.where(is_open, self.ranks[name] + has_to * self.count, -1)
        number = int(is_open.sum())
        return ranks, [*(size for size in self.sizes[name] if has_to.sum() <= size < number), number]

    def _best(self, name: str, size: int, ranks: Ints | None = None) -> Bools:
        """The best `size` entries of a group, by its ranks or others."""
        ranks = self.ranks[name] if ranks is None else ranks
        keep = np.zeros(len(ranks), dtype=bool)
        keep[np.argsort(ranks)[len(ranks) - size :]] = True
        return keep
