"""The uses and shares of a finished label pass by the range of their labels: which of them may concern some labels."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from usdcore.units.labelling import Labelling, Share, Use
    from usdcore.units.layers import IntArray

    BoolArray = np.typing.NDArray[np.bool_]


class Ranges:
    """The lowest and the highest number in each of some arrays, none of them empty."""

    def __init__(self, arrays: Sequence[IntArray]) -> None:
        flat, starts = side_by_side(arrays)
        self.low = np.minimum.reduceat(flat, starts) if len(starts) else flat
        self.high = np.maximum.reduceat(flat, starts) if len(starts) else flat

    def around(self, is_own: BoolArray) -> list[int]:
        """The arrays that have one of some numbers in their range, in order."""
        before = np.concatenate([[0], np.cumsum(is_own)])
        found: list[int] = np.flatnonzero(before[self.high + 1] > before[self.low]).tolist()
        return found


@dataclass(frozen=True, slots=True, eq=False)
class Flat:
    """All uses and shares that have labels; `shares` without -1 among theirs. `is_met_again` says of each slot whether
    it comes more than once in the uses, `by_op` has those of each op.
    """

    uses: Sequence[Use]
    shares: Sequence[Share]
    use_ranges: Ranges
    share_ranges: Ranges
    is_met_again: BoolArray
    by_op: Mapping[int, list[Use]]

    @classmethod
    def of(cls, flow: Labelling) -> Flat:
        """Those of a finished pass."""
        uses = [use for use in flow.uses if len(use.labels)]
        known = (share if share.labels.min() >= 0 else _known(share) for share in flow.shares if len(share.labels))
        shares = [share for share in known if len(share.labels)]
        times = np.bincount(side_by_side([use.slots for use in uses])[0], minlength=flow.num_slots)
        ranges = Ranges([use.labels for use in uses]), Ranges([share.labels for share in shares])
        by_op: dict[int, list[Use]] = defaultdict(list)
        for use in flow.uses:
            by_op[use.op].append(use)
        return cls(uses, shares, *ranges, times > 1, by_op)


def side_by_side(arrays: Sequence[IntArray]) -> tuple[IntArray, IntArray]:
    """All arrays as one, and where each starts."""
    starts = np.cumsum([0, *(len(array) for array in arrays)])[:-1]
    return np.concatenate([np.zeros(0, np.int64), *arrays]), starts


def _known(share: Share) -> Share:
    return replace(share, labels=share.labels[share.labels >= 0])
