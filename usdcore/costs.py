"""Multiply-accumulates (MACs; the papers' "FLOPs") and parameters over the tree of sites: model > branch > group
entries.

Counted as torch's FLOP counter counts (matrix products, convolutions, attention's two products; halved): norms,
activations, softmax and biases are free. A branch costs a fixed part plus so much per kept entry of its groups, so

    model = fixed + sum over branches of keep_branch * (fixed_branch + sum over groups of own_macs * sum(keep_group))

where an entry of a nested group (a head's dim) is kept if it is kept itself and so is the one that it lies in.
All of these costs depend on the widths of residual streams too (`units.widths`): where decisions name the count of one,
they are those of the narrower model. With a sample axis the mean over samples is taken of the cost of each sample's
decisions, never the cost of the mean.
"""

from __future__ import annotations

from copy import copy
from dataclasses import dataclass, replace
from functools import partial
from types import MappingProxyType
from typing import TYPE_CHECKING, Literal, cast

import numpy as np
import torch

from usdcore.expected import FIXED, Formula, PricedBranch
from usdcore.narrow import narrowed
from usdcore.units.types import is_width

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterator, Mapping

    from torch import Tensor

    from usdcore.expected import Term
    from usdcore.plans import Plan
    from usdcore.tokens.prices import Prices
    from usdcore.units.types import Group, IntArray, Unit, Units

Metric = Literal["macs", "params"]


@dataclass(frozen=True)
class Cost:
    """`macs` per image, `params` counted once."""

    macs: int
    params: int


@dataclass(frozen=True)
class _Inner:
    """A group nested in another, and what an entry of it costs."""

    group: Group
    each: int

    @property
    def whole(self) -> int:
        """The cost of all entries."""
        return self.group.size * self.each

    def per_entry(self, size: int) -> float | None:
        """The cost of what lies in one of the `size` entries of the other group; None where it is not the same."""
        held = np.bincount(np.asarray(self.group.parent_of), minlength=size)
        return int(held[0]) * self.each if (held == held[0]).all() else None


@dataclass(frozen=True)
class _Level:
    """A group that is no other's, with what an entry and a pair of entries cost, and the groups nested in it."""

    group: Group
    each: int
    pair: int
    nested: tuple[_Inner, ...]

    @property
    def whole(self) -> int:
        """The cost of all entries."""
        size = self.group.size
        return size * self.each + size**2 * self.pair + sum(inner.whole for inner in self.nested)

    def decided(self, keeps: Mapping[str, int]) -> int:
        """The cost of so many entries."""
        size = self.group.size
        count = keeps.get(self.group.name, size)
        cost = count * self.each + count**2 * self.pair
        for inner in self.nested:
            cost += keeps.get(inner.group.name, inner.group.size * count // max(size, 1)) * inner.each
        return cost

    def terms(self, drawn: Collection[str]) -> dict[Term, float]:
        """Prices of what draws at these sites change, and of the rest together."""
        name, size, found = self.group.name, self.group.size, {FIXED: 0.0}
        if name in drawn:
            found |= {(name, 1): self.each} | ({(name, 2): self.pair} if self.pair else {})
        else:
            found[FIXED] = size * self.each + size**2 * self.pair
        for inner in self.nested:
            each = inner.per_entry(self.group.size)
            if inner.group.name in drawn or (name in drawn and each is None):
                found[inner.group.name, 1] = inner.each
            elif name in drawn and each is not None:
                found[name, 1] += each
            else:
                found[FIXED] += inner.whole
        return found

    def scaled(self, by: float) -> _Level:
        """The same with all prices multiplied."""
        nested = tuple(replace(inner, each=_times(inner.each, by)) for inner in self.nested)
        return replace(self, each=_times(self.each, by), pair=_times(self.pair, by), nested=nested)


@dataclass(frozen=True)
class Part:
    """One branch's share of the tree, or that of a unit that is in no branch (None): it then always runs.

    `constant` of it is spent once, however many images run.
    """

    branch: str | None
    fixed: int
    levels: tuple[_Level, ...]
    constant: int = 0

    @property
    def whole(self) -> int:
        """The cost when everything is kept."""
        return self.fixed + sum(level.whole for level in self.levels)

    def decided(self, keeps: Mapping[str, int]) -> int:
        """The cost when so much is kept of each group."""
        return self.fixed + sum(level.decided(keeps) for level in self.levels)

    def terms(self, drawn: Collection[str], total: int) -> dict[Term, float]:
        """Prices, as shares of `total`, of what draws at these sites change, and of the rest together."""
        own = [level.terms(drawn) for level in self.levels]
        found = {term: price for terms in own for term, price in terms.items()}
        found[FIXED] = self.fixed + sum(terms[FIXED] for terms in own)
        return {term: price / total for term, price in found.items()}

    def priced(self, price: Callable[[tuple[str, str]], int]) -> Part:
        """The same with other prices, of ("branch", name), ("own", group) and ("pairs", group)."""
        levels = [
            _Level(
                level.group,
                price(("own", level.group.name)),
                price(("pairs", level.group.name)),
                tuple(_Inner(inner.group, price(("own", inner.group.name))) for inner in level.nested),
            )
            for level in self.levels
        ]
        assert self.branch is not None
        return _part(self.branch, price(("branch", self.branch)), levels)

    def scaled(self, by: float) -> Part:
        """The same with all prices multiplied."""
        if by == 1:
            return self
        return replace(self, fixed=_times(self.fixed, by), levels=tuple(level.scaled(by) for level in self.levels))


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
    for parent, inside in units.nested.items():
        for group in inside if parent in kept else ():
            assert group.parent_of is not None
            left = group.parent_of[kept[group.name]] if group.name in kept else group.parent_of
            found[group.name] = int(np.isin(left, kept[parent]).sum())
    return found


def fewest(units: Units, sites: Collection[str]) -> dict[str, int]:
    """How few entries may be left of each group among `sites`: one, or one in each entry of a parent that is whole."""
    nested = {group.name: group for inside in units.nested.values() for group in inside}
    found = {name: 1 for name in sites if units.group(name) is not None}
    for name in found.keys() & nested.keys():
        if nested[name].parent not in sites:
            found[name] = len(np.unique(np.asarray(nested[name].parent_of)))
    return found


class Tree:
    """The cost tree of a model in one metric; values are per image (macs) or once (params)."""

    def __init__(self, units: Units, metric: Metric = "macs", prices: Prices = MappingProxyType({})) -> None:
        self.metric = metric
        self.units, self.groups = units, units.groups
        #: What branches cost for any number of tokens, where that varies.
        self.prices = prices if metric == "macs" else {}
        self._narrower: dict[tuple[tuple[str, int], ...], Tree] = {}
        self._formulas: dict[tuple[frozenset[str], frozenset[str], torch.device], Formula] = {}
        self._entries: dict[str, int] | None = None
        self.total = units.macs if metric == "macs" else units.params
        self.parts = _parts(units, metric)
        self.fixed = self.total - sum(part.whole for part in self.parts)

    def decided(self, keeps: Mapping[str, int]) -> int:
        """Exact cost of made decisions: `keeps` has 0 or 1 per branch and a count per group; what is not named is kept.

        The count of a nested group is of those entries whose parent is kept too. Where it is not named while its
        parent's is, a share of it goes with the parents (exact where all of these hold equally many; see `counts`).
        """
        tree = self.at(keeps)
        total = tree.fixed
        for part in tree.parts:
            if part.branch is None or keeps.get(part.branch, 1):
                total += part.decided(keeps)
        return total

    def at(self, keeps: Mapping[str, int]) -> Tree:
        """The tree of the model whose streams are left with the counts that `keeps` has for their widths."""
        counts = tuple(sorted((name, count) for name, count in keeps.items() if is_width(name)))
        if not counts:
            return self
        if counts not in self._narrower:
            tree = Tree(narrowed(self.units, dict(counts)), self.metric)
            tree.parts = [part.scaled(max(own.whole, 1) / max(whole, 1)) for part, own, whole in self._scales(tree)]
            self._narrower[counts] = tree
        return self._narrower[counts]

    def _scales(self, tree: Tree) -> Iterator[tuple[Part, Part, int]]:
        """Each part of a tree of the same model, with this one's, and what that costs with all tokens."""
        for part, own in zip(tree.parts, self.parts, strict=True):
            branch = self.units.branches.get(part.branch or "")
            yield part, own, max(own.whole, 1) if branch is None or self.metric != "macs" else branch.macs

    def with_tokens(self, moments: Mapping[str, tuple[float, float]]) -> Tree:
        """The tree of the model whose branches are given tokens of which the mean of their number and of its square
        over images are these.
        """
        tree = copy(self)
        tree._narrower, tree._entries, tree._formulas = {}, None, {}
        tree.parts = [
            part if own is None else part.priced(partial(mean_price, self.prices, own))
            for part, own in ((part, moments.get(part.branch or "")) for part in self.parts)
        ]
        return tree

    def executed(self, rates: Mapping[str, float], kept: Mapping[str, int] | None = None) -> float:
        """Expected cost when branch b runs for the share `rates[b]` of the images and groups are cut to `kept`."""
        kept = kept or {}
        tree = self.at(kept)
        total = float(tree.fixed)
        for part in tree.parts:
            rate = 1.0 if part.branch is None else rates.get(part.branch, 1.0)
            total += rate * part.decided(kept)
        return total

    def expected(
        self,
        keeps: Mapping[str, Tensor],
        device: torch.device | None = None,
        counts: Mapping[str, Tensor] = MappingProxyType({}),
    ) -> Tensor:
        """Differentiable cost as a share of the dense model, shape [].

        `keeps`: [] or [B] per branch, [n] or [B, n] per group, values in [0, 1]; what is not named is kept whole. An
        entry of a nested group counts with its own keep times that of the entry that it lies in. `counts` are the
        numbers of tokens, [] or [B], that branches are given where it is not all.
        """
        device = device or next((keep.device for keep in keeps.values()), torch.device("cpu"))
        counted = frozenset(counts) if self.prices else frozenset()
        key = frozenset(keeps), counted, device
        if key not in self._formulas:
            self._formulas[key] = self._formula(*key)
        return self._formulas[key](keeps, counts)

    def _formula(self, drawn: frozenset[str], counted: frozenset[str], device: torch.device) -> Formula:
        constant, parts = self.fixed / self.total, []
        for part in self.parts:
            is_counted = part.branch in counted
            degrees = [part.priced(partial(_coefficient, self.prices, i)) for i in range(3)] if is_counted else [part]
            terms = [degree.terms(drawn, self.total) for degree in degrees]
            if is_counted or part.branch in drawn or len(terms[0]) > 1:
                parts.append(PricedBranch(part.branch, tuple(terms)))
            else:
                constant += terms[0][FIXED]
        return Formula(constant, parts, self.groups, drawn, device)

    def entry_cost(self, group: Group) -> int:
        """What one entry of a group costs in this metric, without what can be pruned of it."""
        if self._entries is None:
            levels = [level for part in self.parts for level in part.levels]
            self._entries = {level.group.name: level.each for level in levels}
            self._entries |= {inner.group.name: inner.each for level in levels for inner in level.nested}
        if group.name in self._entries:
            return self._entries[group.name]
        group = self.groups.get(group.name, group)
        return group.own_macs if self.metric == "macs" else group.own_params


def _times(price: int, by: float) -> int:
    """A mean over images, as a price: no whole number then."""
    return cast("int", price * by)


def _coefficient(prices: Prices, degree: int, key: tuple[str, str]) -> int:
    return prices[key][degree]


def mean_price(prices: Prices, moments: tuple[float, float], key: tuple[str, str]) -> int:
    """A price for tokens of whose number the first and the second moment are given."""
    price = prices[key]
    return price[0] + _times(price[1], moments[0]) + _times(price[2], moments[1])


def _parts(units: Units, metric: Metric) -> list[Part]:
    """One part for each branch, with all units inside it, and one for each unit that is in none."""
    is_macs, nested = metric == "macs", units.nested
    inside: dict[str, list[_Level]] = {name: [] for name in units.branches}
    alone = []
    for unit in units.all:
        levels = _levels(unit, nested, is_macs)
        if unit.branch is not None and unit.branch.name in inside:
            inside[unit.branch.name] += levels
        else:
            alone.append(_part(None, unit.macs if is_macs else unit.params, levels))
    return alone + [
        _part(branch.name, branch.macs if is_macs else branch.params, inside[name], branch.constant_macs * is_macs)
        for name, branch in units.branches.items()
    ]


def _part(branch: str | None, whole: int, levels: list[_Level], constant: int = 0) -> Part:
    return Part(branch, whole - sum(level.whole for level in levels), tuple(levels), constant)


def _levels(unit: Unit, nested: Mapping[str, tuple[Group, ...]], is_macs: bool) -> list[_Level]:
    def price(group: Group) -> int:
        return group.own_macs if is_macs else group.own_params

    levels = []
    for group in unit.groups:
        if group.parent_of is None:
            inside = tuple(_Inner(inner, price(inner)) for inner in nested.get(group.name, ()))
            pair = group.macs_per_pair if is_macs else group.params_per_pair
            levels.append(_Level(group, price(group), pair, inside))
    return levels
