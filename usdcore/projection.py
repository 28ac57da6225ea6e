"""From scores to a plan that meets the budget: one threshold for all entries, then down to single neurons."""

from __future__ import annotations

from dataclasses import dataclass
from types import MappingProxyType
from typing import TYPE_CHECKING

import numpy as np

from usdcore.choices import Choice, Choices
from usdcore.costs import counts
from usdcore.errors import UsdcoreError
from usdcore.plans import Drop, Keep
from usdcore.units.types import is_width

if TYPE_CHECKING:
    from collections.abc import Mapping

    from usdcore.choices import Bools, Floats
    from usdcore.costs import Tree
    from usdcore.units.types import Group, Units


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


class Projector:
    """Chooses what to keep by score under limits; `rates` are how often branches run, `sizes` see `Choices`."""

    def __init__(
        self,
        units: Units,
        tree: Tree,
        scores: Mapping[str, Floats],
        rates: Mapping[str, float],
        sizes: Mapping[str, tuple[int, ...]] = MappingProxyType({}),
    ) -> None:
        self.units = units
        self.tree = tree
        self.rates = dict(rates)
        self.choices = Choices(units, scores, sizes)
        self.unrounded = Choices(units, scores, {name: own for name, own in sizes.items() if len(own) == 1})

    def project(self, limits: Limits, drops: tuple[str, ...] = ()) -> Projection:
        """Errors: the limits can't be met even with everything off; the message says the least that can be reached."""
        choices = self.choices
        low, high = 0, choices.count
        if not self._fits(choices.without(high, drops), limits):
            least = self.spent(choices.without(high, drops))
            msg = (
                f"the budget can't be reached: with everything removed that may be, {least / self.tree.total:.1%} of "
                f"the model's {self.tree.metric} are left and {limits.executed / self.tree.total:.1%} were asked for"
            )
            raise UsdcoreError(msg)
        while low < high:
            middle = (low + high) // 2
            low, high = (low, middle) if self._fits(choices.without(middle, drops), limits) else (middle + 1, high)
        choice = self._fill(self._grown(choices.without(high, drops), limits), limits)
        choice = self._evened(choice, limits)
        before = self.spent(self.unrounded.without(choices.negative, drops))
        return Projection(self._records(choice), high, before, self.spent(choice))

    def spent(self, choice: Choice, static: bool = False) -> float:
        """What a choice costs in the tree's metric: at the gates' rates, or with all gates on."""
        kept = self._counts(choice)
        if self.tree.metric == "params" or static:
            return self.tree.decided(kept | dict.fromkeys(choice.dropped, 0))
        return self.tree.executed(self.rates | dict.fromkeys(choice.dropped, 0.0), kept)

    def _fits(self, choice: Choice, limits: Limits) -> bool:
        if limits.static is not None and self.spent(choice, static=True) > limits.static:
            return False
        return self.spent(choice) <= limits.executed

    def _grown(self, choice: Choice, limits: Limits) -> Choice:
        """Groups with sizes grow to their next one, the best entry first, as long as that fits."""
        grown: Choice | None = choice
        while grown is not None:
            choice = grown
            grown = next((larger for larger in self.choices.larger(choice) if self._fits(larger, limits)), None)
        return choice

    def _evened(self, choice: Choice, limits: Limits) -> Choice:
        """What came back alone (a head, with the least inside it) brought to the sizes of what lies in it."""
        even = self.choices.even(choice)
        return self._grown(even, limits) if self.choices.evened and self._fits(even, limits) else choice

    def _fill(self, choice: Choice, limits: Limits) -> Choice:
        """Put back single entries, best first, as long as they fit: a threshold alone leaves a whole head's slack.

        An entry comes back with the least that has to be inside it, and never before the one that it lies in.
        """
        left = limits.executed - self.spent(choice)
        left_static = np.inf if limits.static is None else limits.static - self.spent(choice, static=True)
        tree = self.tree.at(self._counts(choice))
        for name, entry in self.choices.waiting(choice):
            group = self.choices.groups[name]
            if choice.keeps[name][entry] or not self.choices.may_stay(group, choice.keeps)[entry]:
                continue
            inside = self.choices.inside(group, entry)
            if is_width(name) or group.macs_per_pair or group.params_per_pair:  # its price depends on what else is kept
                wider = self._with(choice, name, entry, inside)
                price = self.spent(wider) - self.spent(choice)
                static_price = self.spent(wider, static=True) - self.spent(choice, static=True)
            else:
                static_price = float(tree.entry_cost(group))
                static_price += sum(tree.entry_cost(nested) * int(own.sum()) for nested, own in inside)
                price = static_price * self._rate(name)
            if price <= left and static_price <= left_static:
                choice = self._with(choice, name, entry, inside)
                left, left_static = left - price, left_static - static_price
                if is_width(name):
                    tree = self.tree.at(self._counts(choice))
        return choice

    def _with(self, choice: Choice, name: str, entry: int, inside: list[tuple[Group, Bools]]) -> Choice:
        """The choice with one entry more, and what has to be inside it."""
        keeps = {name: choice.keeps[name] | (np.arange(len(choice.keeps[name])) == entry)}
        keeps |= {nested.name: choice.keeps[nested.name] | own for nested, own in inside if nested.name in choice.keeps}
        return Choice({**choice.keeps, **keeps}, choice.dropped)

    def _counts(self, choice: Choice) -> dict[str, int]:
        return counts(self.units, {name: np.flatnonzero(keep) for name, keep in choice.keeps.items()})

    def _rate(self, name: str) -> float:
        return 1.0 if self.tree.metric == "params" else self.rates.get(self.choices.branch_of.get(name, ""), 1.0)

    def _records(self, choice: Choice) -> list[Keep | Drop]:
        records: list[Keep | Drop] = [Drop(branch=name) for name in sorted(choice.dropped)]
        for name, keep in choice.keeps.items():
            if self.choices.branch_of.get(name) not in choice.dropped and not keep.all():
                records.append(Keep(group=name, indices=tuple(int(i) for i in np.flatnonzero(keep))))
        return records
