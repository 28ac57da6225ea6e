"""Pure tensor functions of UVC: the sum of the k smallest squared norms, its price, the proximal factors.

Shape legend: R rows, n entries of a row.
"""

from __future__ import annotations

import torch
from torch import Tensor


class Least:
    """Squared norms [R, n], sorted once; infinite entries are padding. Counts k [R] are whole numbers in floats."""

    def __init__(self, norms: Tensor) -> None:
        ordered, order = norms.sort(dim=1, stable=True)
        self.ordered = ordered
        self.last = torch.isfinite(ordered).sum(dim=1) - 1
        padded = torch.where(torch.isfinite(ordered), ordered, 0.0)
        self.sums = torch.cat([padded.new_zeros(len(padded), 1), padded.cumsum(dim=1)], dim=1)
        places = torch.arange(norms.shape[1], device=norms.device)
        self.rank = torch.empty_like(order).scatter_(1, order, places.expand_as(order))

    def total(self, count: Tensor) -> Tensor:
        """Phi_k: the sum of the k smallest, [R]."""
        return self.sums.gather(1, count.long()[:, None]).squeeze(1)

    def price(self, count: Tensor) -> Tensor:
        """dPhi/dk: the (k+1)-th smallest, what one more would add; the largest where there is no such entry. [R]"""
        return self.ordered.gather(1, torch.minimum(count.long(), self.last)[:, None]).squeeze(1)

    def chosen(self, count: Tensor) -> Tensor:
        """The k smallest entries, [R, n]."""
        return self.rank < count[:, None]


def prox_factor(chosen: Tensor, weight: Tensor) -> Tensor:
    """What columns are multiplied by: 1 / (1 + 2 * weight) where chosen [R, n], else 1: the exact proximal step of
    `weight` [R] times the squared norm.
    """
    return torch.where(chosen, 1 / (1 + 2 * weight)[:, None], 1.0)


def scores(rank: Tensor, count: Tensor) -> Tensor:
    """How far the counts of all rows would have to be multiplied before an entry goes, less 1; [R, n].

    Entry j (from 0, by norm) of a row with real count s goes at a multiplier above j / s, so an entry that goes at the
    counts as they are is below 0. A row with count 0 comes last.
    """
    place = rank.to(count.dtype)
    return torch.where(count[:, None] > 0, place / count.clamp(min=1e-9)[:, None] - 1, place + 1e6)
