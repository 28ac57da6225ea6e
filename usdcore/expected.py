"""The differentiable cost of a step's draws, of all branches and groups of a model at once.

Every cost is a sum of terms: a price, times 1, a group's number of kept entries or its square, times whether the branch
runs. For one set of sites all of them stand in a few vectors that are made once, so that a step takes a handful of
operations however deep the model is, and none of them waits for the device.

Shape legend: B images, T terms (constants first, then numbers, then squares), D degrees in the number of tokens.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from usdcore.units.types import Group

#: What a price is for: a group's name and the power of its number of kept entries; ("", 0) for what is fixed.
Term = tuple[str, int]
FIXED: Term = ("", 0)


@dataclass(frozen=True)
class PricedBranch:
    """What one branch (None: always runs) costs: for each power of the number of its tokens, the price of each term;
    one power alone where that number is not asked for.
    """

    branch: str | None
    degrees: tuple[Mapping[Term, float], ...]


class Formula:
    """The cost of draws at `drawn` sites, where the branches `counted` are told their numbers of tokens.

    `parts` are in units of the whole result, `constant` is what nothing changes; `groups` are all that terms name.
    """

    def __init__(
        self,
        constant: float,
        parts: Sequence[PricedBranch],
        groups: Mapping[str, Group],
        drawn: frozenset[str],
        device: torch.device,
    ) -> None:
        terms = [(term, part) for part in parts for term in dict.fromkeys(t for d in part.degrees for t in d)]
        terms.sort(key=lambda pair: pair[0][1])  # stable: constants, numbers, squares
        self.constant, self.device = constant, device
        self.branches = [p.branch for p in parts if p.branch is not None and p.branch in drawn]
        self.counted = [p.branch for p in parts if p.branch is not None and len(p.degrees) > 1]
        self.sums = [_Sum.of(groups[name], drawn, device) for (name, power), _ in terms if power == 1]
        places = {own.name: place for place, own in enumerate(self.sums)}
        depth = max((len(part.degrees) for part in parts), default=1)

        def numbers(values: Sequence[int]) -> Tensor:
            return torch.tensor(values, dtype=torch.long, device=device)

        self.one = torch.ones((), device=device)
        self.ones = self.one.expand(sum(power == 0 for (_, power), _ in terms))
        self.squared = numbers([places[name] for (name, power), _ in terms if power == 2])
        self.prices_DT = torch.tensor(
            [[p.degrees[d].get(t, 0.0) if d < len(p.degrees) else 0.0 for t, p in terms] for d in range(depth)],
            device=device,
        )
        self.run_of = numbers([_place(self.branches, part.branch) for _, part in terms])
        self.count_of = numbers([_place(self.counted, part.branch) for _, part in terms])

    def __call__(self, keeps: Mapping[str, Tensor], counts: Mapping[str, Tensor]) -> Tensor:
        """The cost, shape []: the mean over images where draws or numbers of tokens have a sample axis."""
        if not len(self.run_of):
            return torch.full((), self.constant, device=self.device)
        cost = self._values(keeps) * self._prices(counts)
        if self.branches:
            cost = cost * _together([*(keeps[name].float() for name in self.branches), self.one])[..., self.run_of]
        return cost.sum(-1).mean() + self.constant

    def _values(self, keeps: Mapping[str, Tensor]) -> Tensor:
        """1, numbers and squares, [T] or [B, T]."""
        if not self.sums:
            return self.ones
        sums = _together([own(keeps) for own in self.sums])
        parts = [self.ones.expand(*sums.shape[:-1], -1), sums]
        return torch.cat([*parts, sums[..., self.squared].square()] if len(self.squared) else parts, dim=-1)

    def _prices(self, counts: Mapping[str, Tensor]) -> Tensor:
        """Of each term, [T] or [B, T]."""
        if not self.counted:
            return self.prices_DT[0]
        numbers = _together([*(counts[name].to(self.device).float() for name in self.counted), self.one])
        n, (fixed, linear, square) = numbers[..., self.count_of], self.prices_DT.unbind()
        return fixed + n * (linear + n * square)


@dataclass(frozen=True, eq=False)
class _Sum:
    """How many entries of a group are kept, where it or the group that it lies in is drawn."""

    name: str
    size: int
    is_drawn: bool
    parent: str | None
    parent_of: Tensor | None

    @classmethod
    def of(cls, group: Group, drawn: frozenset[str], device: torch.device) -> _Sum:
        """For draws at these sites."""
        is_inner = group.parent_of is not None and group.parent in drawn
        parent_of = torch.tensor(group.parent_of, device=device) if is_inner else None
        return cls(group.name, group.size, group.name in drawn, group.parent if is_inner else None, parent_of)

    def __call__(self, keeps: Mapping[str, Tensor]) -> Tensor:
        """The number, [] or [B]."""
        keep = keeps[self.name].float() if self.is_drawn else None
        if self.parent is not None and self.parent_of is not None:
            parent = keeps[self.parent].float()
            within = parent if parent.ndim == 0 else parent[..., self.parent_of]
            keep = within if keep is None else keep * within
        assert keep is not None
        return keep * self.size if keep.ndim == 0 else keep.sum(-1)


def _place(names: Sequence[str | None], name: str | None) -> int:
    """Where a name stands; behind the last for one that does not."""
    return names.index(name) if name in names else len(names)


def _together(tensors: Sequence[Tensor]) -> Tensor:
    """Numbers [] or [B] along a last axis."""
    shape = torch.broadcast_shapes(*(tensor.shape for tensor in tensors))  # type: ignore[no-untyped-call]
    return torch.stack([tensor.expand(shape) for tensor in tensors], dim=-1)
