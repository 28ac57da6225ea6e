"""Hand-written attention and feed-forward units whose heads or channels are known by one special rule each."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from units.hosts import DIM, HEAD_DIM, HEADS, TOKENS

CHANNELS, HIDDEN = 12, 20


class Heads(nn.Module):
    """One packed projection, attention in `attend` over [B, H, N, d], and an output projection."""

    def __init__(self, is_fused: bool = False) -> None:
        super().__init__()
        self.h, self.d, self.is_fused = HEADS, HEAD_DIM, is_fused
        self.norm = nn.LayerNorm(DIM)
        self.qkv, self.out = nn.Linear(DIM, 3 * DIM), nn.Linear(DIM, DIM)

    def forward(self, x: Tensor) -> Tensor:
        qkv = self.qkv(self.norm(x)).unflatten(-1, (3, self.h, self.d)).permute(2, 0, 3, 1, 4)
        return x + self.out(self.attend(*qkv.unbind(0)).transpose(1, 2).flatten(2))

    def attend(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return self.core(q, k, v, None)

    def core(self, q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None) -> Tensor:
        if self.is_fused:
            return F.scaled_dot_product_attention(q, k, v, attn_mask=bias)
        logits = q @ k.mT * self.d**-0.5
        return (logits if bias is None else logits + bias).softmax(-1) @ v


class Biased(Heads):
    """A bias for each head and pair of tokens from a table by relative position, read in the way `how`."""

    def __init__(self, how: str, is_fused: bool) -> None:
        super().__init__(is_fused)
        self.how, self.rows = how, (2 * TOKENS - 1, HEADS)
        where = torch.arange(TOKENS)[:, None] - torch.arange(TOKENS) + TOKENS - 1
        self.register_buffer("where", where, persistent=False)
        self.table = nn.Parameter(torch.zeros(self.rows[::-1] if how in ("columns", "kept") else self.rows))
        self.register_buffer("hot", F.one_hot(where, 2 * TOKENS - 1).float(), persistent=False)
        self.near = nn.Parameter(torch.zeros(HEADS, 1, TOKENS)) if how == "near" else None
        if how == "mlp":
            self.table = nn.Parameter(torch.zeros(2 * TOKENS - 1, 2))
            self.mlp = nn.Linear(2, HEADS, bias=False)
        self.kept: dict[str, Tensor] = {}

    def train(self, mode: bool = True) -> Biased:
        super().train(mode)
        if mode:
            self.kept = {}
        return self

    def bias(self) -> Tensor:
        how, where = self.how, self.where
        if how == "columns":
            return self.table[:, where]
        if how == "kept":  # what an evaluation gathers stays for the next ones
            if self.training:
                return self.table[:, where]
            if "all" not in self.kept:
                self.kept["all"] = self.table[:, where]
            return self.kept["all"]
        if how == "index_select":
            found = self.table.index_select(0, where.flatten()).view(TOKENS, TOKENS, self.h)
        elif how == "embedding":
            found = F.embedding(where, self.table)
        elif how == "tuple":
            found = self.table[where.flatten()].view(TOKENS, TOKENS, self.rows[1])
        elif how == "product":  # one-hot rows instead of an index
            found = (self.hot @ self.table[None].expand(TOKENS, -1, -1)).contiguous()
        elif how == "mlp":
            found = 4 * torch.sigmoid(self.mlp(self.table))[where]
        else:
            found = self.table[where]
        found = found.permute(2, 0, 1)
        return found if self.near is None else found + self.near

    def attend(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return self.core(q, k, v, self.bias())


class Cosine(Heads):
    def attend(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return self.core(F.normalize(q, dim=-1), k / k.norm(dim=-1, keepdim=True), v, None)


class Channels(Heads):
    """Attention over channels: d x d for each head; `turned`: the values come first in the product."""

    def __init__(self, is_fused: bool = False, is_turned: bool = False) -> None:
        super().__init__(is_fused)
        self.is_turned = is_turned
        self.temperature = nn.Parameter(torch.ones(HEADS, 1, 1))

    def attend(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        if self.is_fused:
            return F.scaled_dot_product_attention(q.mT, k.mT, v.mT).mT
        weights = (q.mT @ k * self.temperature).softmax(-1)
        return v @ weights.mT if self.is_turned else (weights @ v.mT).mT


class Turned(Heads):
    """Values times transposed probabilities, channels first."""

    def attend(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return (v.mT @ (q @ k.mT).softmax(-1).mT).mT


class Talking(Heads):
    """Heads are mixed before and after the softmax, by linear layers or by 1x1 convolutions."""

    def __init__(self, by: str) -> None:
        super().__init__()
        self.by = by
        make: Callable[[], nn.Module] = (
            (lambda: nn.Linear(HEADS, HEADS)) if by == "linear" else (lambda: nn.Conv2d(HEADS, HEADS, 1))
        )
        self.before, self.after = make(), make()

    def mix(self, module: nn.Module, x: Tensor) -> Tensor:
        return module(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2) if self.by == "linear" else module(x)

    def attend(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return self.mix(self.after, self.mix(self.before, q @ k.mT).softmax(-1)) @ v


class OneKey(Heads):
    """All heads share one key and one value."""

    def __init__(self, is_fused: bool) -> None:
        super().__init__(is_fused)
        self.qkv = nn.Linear(DIM, DIM)
        self.key, self.value = nn.Linear(DIM, HEAD_DIM), nn.Linear(DIM, HEAD_DIM)

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm(x)
        q = self.qkv(y).unflatten(-1, (self.h, self.d)).transpose(1, 2)
        k, v = self.key(y)[:, None], self.value(y)[:, None]
        return x + self.out(self.core(q, k, v, None).transpose(1, 2).flatten(2))


class Decomposed(Heads):
    """A bias that each head's queries make with one parameter over their dims."""

    def __init__(self, is_fused: bool) -> None:
        super().__init__(is_fused)
        self.relative = nn.Parameter(torch.zeros(TOKENS, TOKENS, HEAD_DIM))

    def attend(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return self.core(q, k, v, torch.einsum("bhnd,nmd->bhnm", q, self.relative))


class Gated(nn.Module):
    """Two projections read the hidden neurons: one of them gates what the other makes of them."""

    def __init__(self) -> None:
        super().__init__()
        self.up, self.down, self.gate = nn.Linear(DIM, HIDDEN), nn.Linear(HIDDEN, DIM), nn.Linear(HIDDEN, DIM)

    def forward(self, x: Tensor) -> Tensor:
        y = F.gelu(self.up(x))
        return x + self.down(y) * torch.sigmoid(self.gate(y.mean(1, keepdim=True)))


class Chain(nn.Module):
    """Three projections in a row: what the middle one costs depends on both groups of neurons."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Linear(DIM, HIDDEN), nn.Linear(HIDDEN, 8), nn.Linear(8, DIM)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.c(F.relu(self.b(F.relu(self.a(x)))))


class Mixed(nn.Module):
    """A hidden layer of which a second hidden layer of as many neurons is made and added to it."""

    def __init__(self) -> None:
        super().__init__()
        self.up, self.again, self.down = nn.Linear(DIM, HIDDEN), nn.Linear(HIDDEN, HIDDEN), nn.Linear(HIDDEN, DIM)

    def forward(self, x: Tensor) -> Tensor:
        y = self.up(x)
        return x + self.down(y * self.again(F.relu(y)))


class Bare(nn.Module):
    """A feed-forward of bare weights: no module reads its neurons."""

    def __init__(self) -> None:
        super().__init__()
        self.up, self.down = nn.Parameter(torch.zeros(HIDDEN, DIM)), nn.Parameter(torch.zeros(DIM, HIDDEN))

    def forward(self, x: Tensor) -> Tensor:
        return x + F.linear(F.gelu(F.linear(x, self.up)), self.down)


class Pooled(nn.Module):
    """Attention of a latent that is the same for all images, expanded to the batch before its projection."""

    def __init__(self) -> None:
        super().__init__()
        self.latent = nn.Parameter(torch.zeros(1, 1, DIM))
        self.q, self.kv, self.out = nn.Linear(DIM, DIM), nn.Linear(DIM, 2 * DIM), nn.Linear(DIM, DIM)

    def forward(self, x: Tensor) -> Tensor:
        B, N, _ = x.shape
        q = self.q(self.latent.expand(B, -1, -1)).reshape(B, 1, HEADS, HEAD_DIM).transpose(1, 2)
        k, v = self.kv(x).reshape(B, N, 2, HEADS, HEAD_DIM).permute(2, 0, 3, 1, 4).unbind(0)
        return x + self.out(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))


class Stem(nn.Module):
    """Three convolutions in a row: two groups of channels in one module."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.bn = nn.Conv2d(CHANNELS, 5, 1), nn.BatchNorm2d(5)
        self.depth = nn.Conv2d(5, 5, 3, padding=1, groups=5)
        self.b, self.c = nn.Conv2d(5, 4, 1), nn.Conv2d(4, CHANNELS, 1)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.c(F.relu(self.b(self.depth(F.relu(self.bn(self.a(x)))))))


class Squeeze(nn.Module):
    """Squeeze and excite."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.fc1, self.fc2 = nn.Conv2d(channels, 4, 1), nn.Conv2d(4, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        return x * torch.sigmoid(self.fc2(F.relu(self.fc1(x.mean((2, 3), keepdim=True)))))


class ConvFeed(nn.Module):
    """[B, C, H, W]: an inverted bottleneck with BatchNorm, padding, pooling, a depthwise convolution and `gate`."""

    def __init__(self, gate: Callable[[int], nn.Module] = lambda _: nn.Identity(), kernel: int = 1) -> None:
        super().__init__()
        self.up, self.bn1 = nn.Conv2d(CHANNELS, HIDDEN, 1, bias=False), nn.BatchNorm2d(HIDDEN)
        self.depth, self.bn2 = nn.Conv2d(HIDDEN, HIDDEN, 3, groups=HIDDEN), nn.BatchNorm2d(HIDDEN)
        self.gate = gate(HIDDEN)
        self.down = nn.Conv2d(HIDDEN, CHANNELS, kernel, padding=kernel // 2)

    def forward(self, x: Tensor) -> Tensor:
        y = F.pad(F.hardswish(self.bn1(self.up(x))), (1, 1, 1, 1))
        y = F.max_pool2d(self.gate(F.relu(self.bn2(self.depth(y)))), 3, 1, 1)
        return x + self.down(F.interpolate(F.avg_pool2d(y, 2), scale_factor=2.0, mode="nearest"))


class ConvNet(nn.Module):
    """Convolutional blocks in a row, then a head on the mean."""

    def __init__(self, *blocks: nn.Module) -> None:
        super().__init__()
        self.stem, self.blocks, self.head = nn.Conv2d(3, CHANNELS, 1), nn.Sequential(*blocks), nn.Linear(CHANNELS, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.blocks(self.stem(x)).mean((2, 3)))
