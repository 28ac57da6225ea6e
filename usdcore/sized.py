"""Projection where a group may only be left with certain numbers of entries: multiples of 8, or one number alone."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from usdcore.projection import Projector

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from usdcore.costs import Tree
    from usdcore.projection import Bools, Floats, Limits, _Choice
    from usdcore.units.types import Group, Units


class SizedProjector(Projector):
    """`sizes` are the numbers of entries that a group may be left with, ascending; others are left with any.

    A group that holds another one, or lies in one, has a single size: which entries go then depends on no threshold.
    """

    def __init__(
        self,
        units: Units,
        tree: Tree,
        scores: Mapping[str, Floats],
        rates: Mapping[str, float],
        sizes: Mapping[str, tuple[int, ...]],
    ) -> None:
        self.sizes = dict(sizes)
        super().__init__(units, tree, scores, rates)

    def _safe(self, group: Group) -> Bools:
        sizes = self.sizes.get(group.name)
        return super()._safe(group) if sizes is None else self._best(group.name, sizes[0])

    def _without(self, number: int, drops: tuple[str, ...]) -> _Choice:
        """The choice without the `number` worst entries, and without those beyond the size that is left below that."""
        choice = super()._without(number, drops)
        wanted = dict(choice.keeps)
        for name, sizes in self.sizes.items():
            left = int((self.ranks[name] >= number).sum())
            wanted[name] = self._best(name, max((size for size in sizes if size <= left), default=sizes[0]))
        keeps = {name: keep & self._may_stay(self.groups[name], wanted) for name, keep in wanted.items()}
        choice.keeps.update(keeps)
        return choice

    def _fill(self, choice: _Choice, limits: Limits) -> _Choice:
        """Groups with sizes grow to their next one, the best entry first, as long as that fits; then single entries of
        the others come back.
        """
        grown: _Choice | None = choice
        while grown is not None:
            choice = grown
            grown = next((larger for larger in self._larger(choice) if self._fits(larger, limits)), None)
        return super()._fill(choice, limits)

    def _larger(self, choice: _Choice) -> Iterator[_Choice]:
        """The choice with one group grown by a step, in the order of the best entries that would come back."""
        steps = []
        for name, sizes in self.sizes.items():
            keep = choice.keeps[name]
            larger = [size for size in sizes if size > keep.sum()]
            if larger and len(sizes) > 1 and self.branch_of.get(name, "") not in choice.dropped:
                grown = self._best(name, larger[0])
                steps.append((-self.group_scores[name][grown & ~keep].max(), name, grown))
        for _, name, grown in sorted(steps, key=lambda step: step[:2]):
            yield type(choice)({**choice.keeps, name: grown}, choice.dropped)

    def _waiting(self, choice: _Choice) -> Iterator[tuple[float, int, float, str, int]]:
        return (waiting for waiting in super()._waiting(choice) if waiting[3] not in self.sizes)

    def _best(self, name: str, size: int) -> Bools:
        """The best `size` entries of a group."""
        ranks = self.ranks[name]
        keep = np.zeros(len(ranks), dtype=bool)
        keep[np.argsort(ranks)[len(ranks) - size :]] = True
        return keep
