"""Compute a block or a branch for some of the stream's tokens: for these alone, or for all and masked.

Shape legend: B images, N tokens of the stream, C its width, R images that keep n tokens each.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from usdcore.tokens.cores import Cores, key_policy

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from torch import Tensor

    from usdcore.gates import ForwardState, TokenDraw

    Run = Callable[[Tensor], Tensor]


def masked(x_BNC: Tensor, draws: Sequence[TokenDraw], keep: Tensor, run: Run) -> Tensor:
    """`run` on all tokens, those left out being no keys of others; they come out as they went in.

    `keep` [N] or [B, N] is the product of the draws' and has their gradient, where they ask for it.
    """
    factor = policy(draws, keep)
    with Cores(x_BNC.shape[1], lambda: factor):
        out = run(x_BNC)
    weight = keep.detach() if any(draw.is_fixed_delta for draw in draws) else keep
    weight = (weight if keep.ndim == 2 else weight[None])[..., None].to(x_BNC.dtype)
    return torch.lerp(x_BNC, out.to(x_BNC.dtype), weight.expand_as(x_BNC))


def policy(draws: Sequence[TokenDraw], keep: Tensor) -> Tensor:
    """The factor of the softmax's terms that tokens `keep` [N] or [B, N] amount to."""
    is_fixed, is_outer = any(d.is_fixed_key for d in draws), any(d.attention == "outer" for d in draws)
    return key_policy(keep.detach() if is_fixed else keep, is_outer)


def gathered(x_BNC: Tensor, draws: Sequence[TokenDraw], keep: Tensor, run: Run, state: ForwardState) -> Tensor:
    """`run` on the tokens that are kept alone; the others are not computed, and come out as they went in.

    Images that keep equally many tokens run together, `state.rows` saying which they are.
    """
    outer, (_, N, C) = state.rows, x_BNC.shape
    flat, places, parts = x_BNC.reshape(-1, C), [], []
    for rows, index in _groups(draws, keep, outer, x_BNC.shape[0]):
        own = torch.arange(x_BNC.shape[0], device=x_BNC.device) if rows is None else rows
        place_Rn = own[:, None] * N + index
        state.rows = outer if rows is None else rows if outer is None else outer[rows]
        made = run(flat.index_select(0, place_Rn.flatten()).view(*place_Rn.shape, C))
        state.rows = outer
        places.append(place_Rn.flatten())
        parts.append(made.reshape(-1, C).to(x_BNC.dtype))
    return flat.index_copy(0, torch.cat(places), torch.cat(parts)).view_as(x_BNC) if parts else x_BNC


def _groups(
    draws: Sequence[TokenDraw], keep: Tensor, outer: Tensor | None, batch_size: int
) -> Iterator[tuple[Tensor | None, Tensor]]:
    """Images that keep equally many tokens, None for all, with the tokens [R or 1, n] that they keep."""
    stated = draws[0].index
    if stated is not None and len(draws) == 1:
        yield None, stated if outer is None else stated[outer]
        return
    if keep.ndim == 1:
        yield None, keep.nonzero().view(1, -1)
        return
    own = keep if outer is None else keep[outer]
    counts = own.count_nonzero(1)
    different = sorted(set(counts.tolist()))
    for n in different:
        rows = None if len(different) == 1 and batch_size == len(own) else (counts == n).nonzero().flatten()
        if n:
            yield rows, (own if rows is None else own[rows]).nonzero()[:, 1].view(-1, n)
