"""How many tokens each block merges, and what the model then costs: known without any image.

Shape legend: L places where tokens are merged, K candidate schedules.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Sequence

    from usdcore.tokens.prices import Price
    from usdcore.units.types import IntArray

#: In so many of the last blocks, and with so many numbers of merges in each, all schedules are tried that are no more
#: than the third.
BLOCKS, NUMBERS, SCHEDULES = 12, 8, 4096
#: Of schedules as near to the best as this share of the dense MACs, the one with the fewest changes is taken.
NEAR = 0.0005


@dataclass(frozen=True)
class Costs:
    """MACs per image by schedule. `stages[i]` is the price of all branches between place i - 1 and place i (after the
    last: i = L), `fixed` is what no merging changes. Each place compares keys of width `widths[i]`.

    `tokens` enter the first place, `prefix` of which are never merged.
    """

    fixed: int
    stages: tuple[Price, ...]
    widths: tuple[int, ...]
    tokens: int
    prefix: int

    @property
    def dense(self) -> int:
        """The MACs of the model that merges nothing."""
        return int(self.macs(np.zeros(len(self.widths), dtype=np.int64)))

    def entering(self, rs: Sequence[int] | IntArray) -> tuple[list[int], list[int]]:
        """How many tokens enter each place, and how many of them are merged: `rs`, at most half each time."""
        left, counts, merged = self.tokens, [], []
        for r in rs:
            counts.append(left)
            merged.append(min(int(r), (left - self.prefix) // 2))
            left -= merged[-1]
        return counts, merged

    def macs(self, rs_KL: IntArray) -> IntArray:
        """Per image, of schedules [K, L] or [L]; shape [K] or []."""
        left = np.full(rs_KL.shape[:-1], self.tokens, dtype=np.int64)
        total = self.fixed + _at(self.stages[0], left)
        for i, width in enumerate(self.widths):
            r = np.minimum(rs_KL[..., i], (left - self.prefix) // 2)
            total = total + np.where(r > 0, matching_macs(left - self.prefix, width), 0)
            left = left - r
            total = total + _at(self.stages[i + 1], left)
        return total


def matching_macs(tokens: IntArray, width: int) -> IntArray:
    """Of the similarity of every token of one half with each of the other, over keys of `width`."""
    return (tokens + 1) // 2 * (tokens // 2) * width


def spread(total: int, places: int, inflection: float) -> IntArray:
    """`total` merges over blocks [L], in a line: `inflection` 0 constant, 1 from none to twice the mean, -1 reversed.

    Sums of the first blocks are rounded, so that all of them sum to `total`; they grow with it.
    """
    if places == 1:
        return np.array([total], dtype=np.int64)
    line = 1 + inflection * (2 * np.arange(places) / (places - 1) - 1)
    sums = np.floor(total * np.cumsum(line) / places + 0.5 + 1e-9).astype(np.int64)
    return np.diff(sums, prepend=0)


def solve(costs: Costs, most: float, inflection: float) -> IntArray | None:
    """The schedule [L] of fewest merges that costs at most `most` MACs per image, as near to it as few merges more or
    less in some blocks allows; None if the most that can be merged costs more.
    """
    places = len(costs.widths)
    if costs.dense <= most:
        return np.zeros(places, dtype=np.int64)
    low, high = 0, places * costs.tokens
    if costs.macs(spread(high, places, inflection)) > most:
        return None
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if costs.macs(spread(middle, places, inflection)) > most else (low, middle)
    return _closed(costs, most, spread(low, places, inflection), spread(high, places, inflection))


def _closed(costs: Costs, most: float, above: IntArray, below: IntArray) -> IntArray:
    """The schedule that comes nearest to `most` from below: `below`, or one that differs from `above` by few merges in
    some blocks.
    """
    above = np.array(costs.entering(above)[1])  # without what is more than half
    tried = min(len(above), BLOCKS)
    numbers = min(NUMBERS, int(SCHEDULES ** (1 / tried) + 1e-9))
    steps = np.arange(numbers) - (numbers - 2) // 2
    more = np.stack(np.meshgrid(*[steps] * tried, indexing="ij"), -1).reshape(-1, tried)
    candidates = np.maximum(above + np.pad(more, ((0, 0), (len(above) - tried, 0))), 0)
    candidates = np.concatenate([below[None], candidates])
    macs = costs.macs(candidates)
    within = np.where(macs <= most, macs, -1)
    changes = np.abs(candidates - above).sum(1)
    return np.asarray(
        candidates[np.where(within >= within.max() - NEAR * costs.dense, changes, changes.max() + 1).argmin()]
    )


def _at(price: Price, tokens: IntArray) -> IntArray:
    return price[0] + tokens * (price[1] + tokens * price[2])
