"""Hand-written ViTs in styles that timm does not use, all of one small shape."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

DIM, HEADS, HEAD_DIM, HIDDEN, TOKENS = 24, 4, 6, 40, 5
INPUT = torch.zeros(1, TOKENS, DIM)


def side_by_side(y: Tensor, width: int) -> Tensor:
    """Heads put together by a function that is no method of the module."""
    return y.transpose(1, 2).reshape(len(y), y.shape[2], width)


class Attention(nn.Module):
    """Separate q, k and v; `merge` is how the heads are put side by side again, `core` how attention is computed."""

    def __init__(self, merge: str = "dims", core: str = "matmul", head_dim: int = HEAD_DIM, heads: int = HEADS) -> None:
        super().__init__()
        self.how, self.core = merge, core
        self.h, self.width, self.total = heads, head_dim, heads * head_dim
        self.to_q, self.to_k, self.to_v = (nn.Linear(DIM, self.total, bias=i != 1) for i in range(3))
        self.soft = nn.Softmax(dim=-1)
        self.out = nn.Linear(self.total, DIM)
        self.temperature = nn.Parameter(torch.ones(heads, 1, 1)) if core == "temperature" else None

    def split(self, x: Tensor) -> Tensor:
        B, N, C = x.shape
        if self.how == "unflatten":
            return x.unflatten(-1, (self.h, self.width)).transpose(1, 2)
        if self.how == "number":
            return x.reshape(B, N, self.h, C // self.h).transpose(1, 2)
        return x.view(B, N, self.h, -1).permute(0, 2, 1, 3)

    def attend(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        if self.core == "fused":
            return F.scaled_dot_product_attention(q, k, v)
        if self.core == "einsum":
            weights = self.soft(torch.einsum("bhid,bhjd->bhij", q, k) * self.width**-0.5)
            return torch.einsum("bhij,bhjd->bhid", weights, v)
        if self.core == "folded":  # [B * H, N, d], as torch's own multi-head attention
            B, H = q.shape[:2]
            q, k, v = (x.flatten(0, 1) for x in (q, k, v))
            return torch.bmm(self.soft(torch.bmm(q, k.mT)), v).unflatten(0, (B, H))
        logits = q @ k.mT
        if self.temperature is not None:
            logits = logits * self.temperature
        if self.core == "average":
            logits = logits / self.h
        return self.soft(logits) @ v

    def forward(self, x: Tensor) -> Tensor:
        B, N, C = x.shape
        y = self.attend(self.split(self.to_q(x)), self.split(self.to_k(x)), self.split(self.to_v(x)))
        if self.how == "number":
            y = y.transpose(1, 2).reshape(B, N, C)
        elif self.how == "function":
            y = side_by_side(y, C)
        elif self.how == "attribute":
            y = y.transpose(1, 2).reshape(B, N, self.total)
        elif self.how == "product":
            y = y.transpose(1, 2).reshape(B, N, self.h * self.width)
        elif self.how == "dims":
            y = y.transpose(1, 2).reshape(B, N, y.shape[1] * y.size(3))
        else:
            y = y.transpose(1, 2).flatten(2)
        return self.out(y)


def mlp() -> nn.Module:
    return nn.Sequential(nn.LayerNorm(DIM), nn.Linear(DIM, HIDDEN), nn.GELU(), nn.Linear(HIDDEN, DIM))


class Block(nn.Module):
    """Pre-norm; the second norm is inside the Sequential of the feed-forward."""

    def __init__(self, **attention: Any) -> None:
        super().__init__()
        self.before = nn.LayerNorm(DIM)
        self.mix = Attention(**attention)
        self.feed = mlp()

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.mix(self.before(x))
        return self.feed(x) + x


class InPlace(Block):
    def forward(self, x: Tensor) -> Tensor:
        x = x + self.mix(self.before(x))
        x += self.feed(x)
        return x


class Scaled(Block):
    """A LayerScale written as a product in the block's own code."""

    def __init__(self) -> None:
        super().__init__()
        self.gamma = nn.Parameter(torch.ones(DIM))

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.gamma * self.mix(self.before(x))
        return x + self.feed(x)


class PostNorm(Block):
    def forward(self, x: Tensor) -> Tensor:
        x = self.before(x + self.mix(x))
        return x + self.feed(x)


class Peeking(nn.Module):
    """The second branch reads what the first one left behind."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = mlp(), mlp()
        self.reader = Reader(self)

    def forward(self, x: Tensor) -> Tensor:
        self.seen = self.first(x)
        x = x + self.seen
        return x + self.reader(x)


class Reader(nn.Module):
    def __init__(self, owner: Peeking) -> None:
        super().__init__()
        self.feed = mlp()
        self.__dict__["owner"] = owner

    def forward(self, x: Tensor) -> Tensor:
        return self.feed(x) * self.__dict__["owner"].seen


class Shared(nn.Module):
    """One feed-forward used twice."""

    def __init__(self) -> None:
        super().__init__()
        self.feed = mlp()

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.feed(x)
        return x + self.feed(x)


class Gated(nn.Module):
    """A gated feed-forward whose halves come from one projection, cut by `cut`."""

    def __init__(self, cut: str) -> None:
        super().__init__()
        self.cut, self.half = cut, HIDDEN
        self.up, self.down = nn.Linear(DIM, 2 * HIDDEN), nn.Linear(HIDDEN, DIM)

    def forward(self, x: Tensor) -> Tensor:
        y = self.up(x)
        if self.cut == "attribute":
            a, b = y[..., : self.half], y[..., self.half :]
        elif self.cut == "number":
            a, b = y[..., :40], y[..., 40:]
        elif self.cut == "split":
            a, b = y.split(self.half, dim=-1)
        else:
            a, b = y.split([40, 40], dim=-1)
        return self.down(F.silu(a) * b)


class Layers(nn.Module):
    """The whole network: blocks in a row, then a head on the first token."""

    def __init__(self, *blocks: nn.Module) -> None:
        super().__init__()
        self.layers = nn.Sequential(*blocks)
        self.head = nn.Linear(DIM, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.layers(x)[:, 0])


class Residual(nn.Module):
    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, x: Tensor) -> Tensor:
        return x + self.inner(x)
