"""The prediction module: what scores tokens (DynamicViT, Eq. 1 to 5).

Shape legend: B images, M patch tokens that it is given, C width of the stream.
"""

from __future__ import annotations

from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Predictor(nn.Module):
    """Log-probabilities [B, M, 2] of keeping and of dropping each token, from itself and from the mean of those kept.

    LayerNorm, Linear C -> C, GELU; half of the channels is averaged over the kept tokens and handed to all of them;
    then C -> C/2, GELU, C/2 -> C/4, GELU, C/4 -> 2.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.local = width - width // 2
        self.enter = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, width), nn.GELU())
        _, half, quarter, last = _widths(width)
        self.score = nn.Sequential(
            nn.Linear(width, half), nn.GELU(), nn.Linear(half, quarter), nn.GELU(), nn.Linear(quarter, last)
        )
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.trunc_normal_(module.weight, std=0.02)
                nn.init.zeros_(module.bias)

    def forward(self, x_BMC: Tensor, kept_BM: Tensor | None = None) -> Tensor:
        """Of tokens of which `kept_BM` (0 or 1; None for all) are still there; in float32 or more."""
        x_BMC = self.enter(x_BMC)
        own, shared = x_BMC[..., : self.local], x_BMC[..., self.local :]
        mean = shared.mean(1, keepdim=True) if kept_BM is None else _mean_of(shared, kept_BM)
        both = torch.cat([own, mean.to(own.dtype).expand_as(shared)], dim=-1)
        logits: Tensor = self.score(both)
        return F.log_softmax(logits, dim=-1, dtype=torch.promote_types(logits.dtype, torch.float32))


def macs_per_token(width: int) -> int:
    """Multiply-accumulates of a predictor for one token."""
    widths = _widths(width)
    return width * width + sum(a * b for a, b in pairwise(widths))


def _widths(width: int) -> tuple[int, int, int, int]:
    """Of what its linear maps after the first one read and make."""
    return width, max(width // 2, 1), max(width // 4, 1), 2


def _mean_of(x_BMC: Tensor, kept_BM: Tensor) -> Tensor:
    """The mean over kept tokens [B, 1, C]; 0 where an image has none left, as can happen in training."""
    weight = kept_BM[..., None].to(torch.promote_types(x_BMC.dtype, torch.float32))
    return (x_BMC * weight).sum(1, keepdim=True) / weight.sum(1, keepdim=True).clamp(min=1.0)


def sampled(log_p_BM2: Tensor, earlier_BM: Tensor | None, tau: float) -> Tensor:
    """Training's decisions [B, M], 0 or 1 with the Gumbel-softmax's gradient, times the earlier ones: what was dropped
    stays dropped (Eq. 6, 7).
    """
    hard: Tensor = F.gumbel_softmax(log_p_BM2, tau=tau, hard=True, dim=-1)
    keep = hard[..., 0]
    return keep if earlier_BM is None else keep * earlier_BM


def best(score_BM: Tensor, count: int) -> Tensor:
    """The positions [B, count] of the tokens with the highest scores, ascending."""
    chosen = score_BM.topk(min(count, score_BM.shape[1]), dim=1).indices
    return chosen.sort(dim=1).values
