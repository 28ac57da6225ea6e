"""The tokens-to-token module: three soft splits, with a narrow transformer layer of linear attention between them.

Shapes: B images, N tokens, D width of a token, M random features, I inputs of a layer.
"""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.nn import functional as F

if TYPE_CHECKING:
    from collections.abc import Sequence

SPLITS = ((7, 4, 2), (3, 2, 1), (3, 2, 1))
"""Kernel, stride and padding of each soft split: at 224 pixels it leaves 56, 28 and 14 tokens a side."""


def grid_after(size: Sequence[int], splits: Sequence[tuple[int, int, int]] = SPLITS) -> tuple[int, int]:
    """Rows and columns of tokens that soft splits leave of `size` (height, width)."""
    height, width = size
    for kernel, stride, padding in splits:
        height, width = ((side + 2 * padding - kernel) // stride + 1 for side in (height, width))
    return height, width


def soft_split(x_BCHW: Tensor, split: tuple[int, int, int]) -> Tensor:
    """Overlapping windows as tokens [B, N, C * kernel * kernel]; cutting them out costs no multiplications."""
    kernel, stride, padding = split
    return F.unfold(x_BCHW, kernel, stride=stride, padding=padding).transpose(1, 2)


def as_image(x_BND: Tensor, grid: tuple[int, int]) -> Tensor:
    """Tokens as an image [B, D, rows, columns]."""
    return x_BND.transpose(1, 2).reshape(x_BND.shape[0], x_BND.shape[2], *grid)


class LinearAttention(nn.Module):
    """One head of Performer's attention [B, N, I] -> [B, N, D], whose cost is linear in N.

    softmax(q k^T) is approached by positive random features, phi(x) = exp(w x - |x|^2 / 2) / sqrt(M) with M fixed
    orthogonal rows w of length sqrt(M) (Choromanski et al., ICLR 2021, Eq. 5). As the widths of input and output
    differ, what the projection is added to is v, not the input.
    """

    EPSILON = 1e-8

    def __init__(self, inputs: int, width: int, num_features: int, drop_rate: float) -> None:
        super().__init__()
        self.num_features = num_features
        self.norm = nn.LayerNorm(inputs)
        self.kqv = nn.Linear(inputs, 3 * width)
        self.proj = nn.Linear(width, width)
        self.drop = nn.Dropout(drop_rate)
        # Drawn once and kept: a parameter that does not train, so that it is saved and counted with the weights.
        self.random_features = nn.Parameter(torch.empty(num_features, width), requires_grad=False)
        nn.init.orthogonal_(self.random_features, gain=num_features**0.5)

    def forward(self, x_BNI: Tensor) -> Tensor:
        """Tokens [B, N, D]."""
        k_BND, q_BND, v_BND = self.kqv(self.norm(x_BNI)).chunk(3, dim=-1)
        return v_BND + self.drop(self.proj(self._attend(q_BND, k_BND, v_BND)))

    def _attend(self, q_BND: Tensor, k_BND: Tensor, v_BND: Tensor) -> Tensor:
        """phi(q) (phi(k)^T v) over phi(q) (phi(k)^T 1)."""
        with _full_precision(q_BND):
            q_BNM, k_BNM, v = self._features(q_BND), self._features(k_BND), _widened(v_BND)
            total_BM1 = k_BNM.sum(dim=1).unsqueeze(-1)
            out = q_BNM @ (k_BNM.transpose(1, 2) @ v) / (q_BNM @ total_BM1 + self.EPSILON)
        return out if out.dtype == v_BND.dtype else out.to(v_BND.dtype)

    def _features(self, x_BND: Tensor) -> Tensor:
        """phi(x) [B, N, M]."""
        x_BND = _widened(x_BND)
        half_BN1 = x_BND.square().sum(dim=-1, keepdim=True) / 2
        return torch.exp(x_BND @ _widened(self.random_features).T - half_BN1) / self.num_features**0.5


class NarrowLayer(nn.Module):
    """One transformer layer of the module, [B, N, I] -> [B, N, D]: linear attention, then y + mlp(norm(y))."""

    def __init__(self, inputs: int, width: int, num_features: int, drop_rate: float) -> None:
        super().__init__()
        self.attn = LinearAttention(inputs, width, num_features, drop_rate)
        self.norm = nn.LayerNorm(width)
        self.mlp = nn.Sequential(nn.Linear(width, width), nn.GELU(), nn.Linear(width, width), nn.Dropout(drop_rate))

    def forward(self, x_BNI: Tensor) -> Tensor:
        """Tokens [B, N, D]."""
        y_BND = self.attn(x_BNI)
        return y_BND + self.mlp(self.norm(y_BND))


def _widened(x: Tensor) -> Tensor:
    """In single precision at least: the exponentials overflow in half."""
    return x.float() if x.dtype in (torch.float16, torch.bfloat16) else x


def _full_precision(x: Tensor) -> AbstractContextManager[object]:
    """No autocast, where one is on."""
    kind = x.device.type
    if torch.amp.is_autocast_available(kind) and torch.is_autocast_enabled(kind):
        return torch.autocast(kind, enabled=False)
    return nullcontext()


class TokensToToken(nn.Module):
    """Images [B, C, H, W] to tokens [B, N, embed_dim], N = rows * columns of `grid_after((H, W))`."""

    def __init__(
        self, size: Sequence[int], in_chans: int, token_dim: int, embed_dim: int, num_features: int, drop_rate: float
    ) -> None:
        super().__init__()
        self.grids = tuple(grid_after(size, SPLITS[: place + 1]) for place in range(len(SPLITS)))
        self.num_tokens = self.grids[-1][0] * self.grids[-1][1]
        areas = [kernel * kernel for kernel, _, _ in SPLITS]
        self.layer1 = NarrowLayer(in_chans * areas[0], token_dim, num_features, drop_rate)
        self.layer2 = NarrowLayer(token_dim * areas[1], token_dim, num_features, drop_rate)
        self.project = nn.Linear(token_dim * areas[2], embed_dim)

    def forward(self, x_BCHW: Tensor) -> Tensor:
        """Tokens [B, N, embed_dim]."""
        x = soft_split(x_BCHW, SPLITS[0])
        x = soft_split(as_image(self.layer1(x), self.grids[0]), SPLITS[1])
        x = soft_split(as_image(self.layer2(x), self.grids[1]), SPLITS[2])
        return self.project(x)
