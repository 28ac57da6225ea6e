"""AdaViT's decisions and what they are trained by: pure tensor functions.

Shape legend: B images of a batch.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch

from usdcore.strategy import unchanged

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from torch import Tensor


def edge_of(probability: float, tau: float) -> float:
    """The logit above which sigmoid(logit / tau) exceeds a probability."""
    return tau * math.log(probability / (1 - probability))


def gumbel_sigmoid(logit: Tensor, tau: float, edge: float, noise: float = 1.0) -> Tensor:
    """1 where the noisy logit is above the edge, else 0, with the gradient of sigmoid(noisy logit / tau). The noise is
    `noise` times the difference of two Gumbel samples, which is a logistic one. A random sample of the logit's shape.
    """
    if noise > 0:
        logit = logit + noise * torch.logit(torch.rand_like(logit).clamp_(1e-6, 1 - 1e-6))
    soft = torch.sigmoid(logit / tau)
    return certain(logit, edge) + (soft - soft.detach())


def certain(logit: Tensor, edge: float) -> Tensor:
    """1 where the logit is above the edge, else 0: the decisions of evaluation."""
    return (logit > edge).to(logit.dtype)


def mean_usage(
    shares_B: Sequence[Tensor], weights_B: Sequence[Tensor] | None = None, mean: Callable[[Tensor], Tensor] = unchanged
) -> Tensor:
    """The mean over images and blocks of the share of things that are on in a block, each weighed; shape [].

    `mean` gives the mean over the processes that share a batch. Where all weights are 0 it is 0.
    """
    used = torch.stack(list(shares_B))
    if weights_B is None:
        return mean(used.mean())
    weight = torch.stack(list(weights_B))
    return mean((used * weight).mean()) / mean(weight.mean()).clamp(min=1e-6)
