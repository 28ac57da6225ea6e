"""Relaxed and straight-through decisions: pure tensor functions."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from usdcore.strategy import unchanged

if TYPE_CHECKING:
    from collections.abc import Callable


def logistic_noise(like: Tensor) -> Tensor:
    """A standard logistic sample of the same shape: the difference of two Gumbel samples."""
    uniform = torch.rand_like(like).clamp_(1e-6, 1 - 1e-6)
    return torch.log(uniform) - torch.log1p(-uniform)


def straight_through(logit: Tensor, tau: float) -> Tensor:
    """1 where `logit` >= 0, else 0, with the gradient of sigmoid(logit / tau)."""
    soft = torch.sigmoid(logit / tau)
    hard = (logit >= 0).to(soft.dtype)
    return hard + (soft - soft.detach())


def information(logit_BS: Tensor, mean: Callable[[Tensor], Tensor] = unchanged) -> Tensor:
    """Mutual information in nats between each decision and the image, H(mean p) - mean H(p) with p = sigmoid(logit);
    shape [S]. `mean` gives the mean over the processes that share a batch.

    0 for a gate that decides alike for every image, log 2 for one that is sure of each and on for half of them.
    """
    p_BS = torch.sigmoid(logit_BS)
    return _entropy(mean(p_BS.mean(dim=0))) - _entropy(p_BS).mean(dim=0)


def _entropy(p: Tensor) -> Tensor:
    p = p.clamp(1e-6, 1 - 1e-6)
    return -(p * p.log() + (1 - p) * (1 - p).log())


def keep_factor(pair: Tensor, tau: float, noise: float, hard: bool) -> Tensor:
    """The keep weight of pairs of logits [..., 2] (index 0 keep, 1 drop), shape [...].

    With `noise` 1 this is the Gumbel-softmax over the pair, with 0 the softmax; `hard` takes the larger of the two
    forward.
    """
    logit = pair[..., 0] - pair[..., 1]
    if noise > 0:
        logit = logit + noise * logistic_noise(logit)
    return straight_through(logit, tau) if hard else torch.sigmoid(logit / tau)
