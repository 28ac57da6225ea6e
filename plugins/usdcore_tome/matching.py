"""Bipartite soft matching and merging as pure tensor functions (ToMe, section 3).

After the `prefix` tokens that are never merged, tokens alternate between set A and set B. Each of A proposes the most
similar one of B; the best `r` proposals are merged into B, weighted by how many tokens each stands for already.

Shape legend: B images, N tokens, M = N - r that are left, C width, r merged ones.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F


@dataclass(frozen=True)
class Match:
    """Which tokens stay, `kept` [B, M]: the prefix, what is left of A, and B, each in order. Those that go, `merged`
    [B, r], become part of the ones at `into` [B, r] among those that stay.
    """

    kept: Tensor
    merged: Tensor
    into: Tensor


def match(metric_BND: Tensor, prefix: int, r: int) -> Match:
    """The `r` best of the proposals by cosine similarity of `metric_BND`; r is at most half of the tokens after the
    prefix. No gradient passes. Of equal proposals, the first ones count.
    """
    with torch.autocast(metric_BND.device.type, enabled=False):
        own = F.normalize(metric_BND[:, prefix:].detach().float(), dim=-1)
        best, partner = (own[:, ::2] @ own[:, 1::2].transpose(-2, -1)).max(-1)
    order = best.argsort(dim=-1, descending=True, stable=True)
    merged, left = order[:, :r], order[:, r:].sort(-1).values
    places = torch.arange(metric_BND.shape[1], device=order.device).expand(len(order), -1)
    kept = torch.cat([places[:, :prefix], prefix + 2 * left, places[:, prefix + 1 :: 2]], 1)
    return Match(kept, prefix + 2 * merged, prefix + left.shape[1] + partner.gather(1, merged))


def merge(x_BNC: Tensor, size_BN: Tensor, match: Match) -> tuple[Tensor, Tensor]:
    """The tokens that are left and how many each stands for, [B, M, C] and [B, M]: the mean over what was merged into
    it, weighted by size. What nothing was merged into stays to the bit.
    """
    size = size_BN.gather(1, match.merged)
    total = size_BN.gather(1, match.kept).scatter_add(1, match.into, size)
    share = (size / total.gather(1, match.into)).to(x_BNC.dtype)
    rows = x_BNC.flatten(0, 1)
    left = rows.index_select(0, _flat(match.kept, x_BNC.shape[1]))
    into = _flat(match.into, match.kept.shape[1])
    moved = rows.index_select(0, _flat(match.merged, x_BNC.shape[1])) - left.index_select(0, into)
    left = left.index_add_(0, into, moved * share.flatten()[:, None])  # a tensor of its own: nobody holds it yet
    return left.view(*match.kept.shape, -1), total


def destinations(match: Match) -> Tensor:
    """Where each of the tokens [B, N] is after merging: its place among those that are left."""
    places = torch.arange(match.kept.shape[1], device=match.kept.device).expand_as(match.kept)
    num_tokens = match.kept.shape[1] + match.merged.shape[1]
    new = match.kept.new_zeros(len(match.kept), num_tokens)
    return new.scatter(1, match.kept, places).scatter(1, match.merged, match.into)


def _flat(index_Bn: Tensor, num_rows: int) -> Tensor:
    """Places in each image, as places among the rows of all images."""
    images = torch.arange(len(index_Bn), device=index_Bn.device)
    return (index_Bn + num_rows * images[:, None]).flatten()
