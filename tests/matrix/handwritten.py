"""ViTs in styles that no library uses, to show that nothing is known by its name."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .entries import SMALL_CLASSES, Builder, Entry

WIDTH, HEADS, HIDDEN, PATCH, DEPTH = 48, 4, 96, 8, 2


class Bare(nn.Module):
    """Bare parameters and `F.linear`, attention by einsum, pre-norm written out."""

    def __init__(self) -> None:
        super().__init__()
        self.heads, self.dim = HEADS, WIDTH // HEADS
        self.qkv_weight = nn.Parameter(torch.randn(3, HEADS, self.dim, WIDTH))
        self.out_weight = nn.Parameter(torch.randn(WIDTH, HEADS, self.dim))
        self.up_weight, self.up_bias = nn.Parameter(torch.randn(HIDDEN, WIDTH)), nn.Parameter(torch.zeros(HIDDEN))
        self.down_weight = nn.Parameter(torch.randn(WIDTH, HIDDEN))
        self.first, self.second = nn.LayerNorm(WIDTH), nn.LayerNorm(WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = torch.einsum("bnc,thdc->tbhnd", self.first(x), self.qkv_weight)
        weights = torch.einsum("bhid,bhjd->bhij", q, k).mul(self.dim**-0.5).softmax(-1)
        x = x + torch.einsum("bhij,bhjd,chd->bic", weights, v, self.out_weight)
        return x + F.linear(F.gelu(F.linear(self.second(x), self.up_weight, self.up_bias)), self.down_weight)


class MultiHead(nn.Module):
    """`nn.MultiheadAttention`, and a gated feed-forward."""

    def __init__(self) -> None:
        super().__init__()
        self.mix = nn.MultiheadAttention(WIDTH, HEADS, batch_first=True)
        self.gate, self.up, self.down = nn.Linear(WIDTH, HIDDEN), nn.Linear(WIDTH, HIDDEN), nn.Linear(HIDDEN, WIDTH)
        self.first, self.second = nn.LayerNorm(WIDTH), nn.LayerNorm(WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        y = self.first(x)
        x = x + self.mix(y, y, y, need_weights=False)[0]
        y = self.second(x)
        return x + self.down(F.silu(self.gate(y)) * self.up(y))


class PostNorm(nn.Module):
    """Norms after the sums, one joint projection of keys and values, `torch.split`, tokens first."""

    def __init__(self) -> None:
        super().__init__()
        self.num_heads, self.head_dim = HEADS, WIDTH // HEADS
        self.to_q, self.to_kv = nn.Linear(WIDTH, WIDTH, bias=False), nn.Linear(WIDTH, 2 * WIDTH)
        self.back = nn.Linear(WIDTH, WIDTH)
        self.mlp = nn.Sequential(nn.Linear(WIDTH, HIDDEN), nn.ReLU(), nn.Linear(HIDDEN, WIDTH))
        self.first, self.second = nn.LayerNorm(WIDTH), nn.LayerNorm(WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        y = x.transpose(0, 1)
        k, v = self.to_kv(y).chunk(2, dim=-1)
        q, k, v = (part.unflatten(-1, (self.num_heads, -1)).permute(1, 2, 0, 3) for part in (self.to_q(y), k, v))
        mixed = F.scaled_dot_product_attention(q, k, v).permute(2, 0, 1, 3).flatten(2)
        x = self.first(x + self.back(mixed).transpose(0, 1))
        return self.second(x + self.mlp(x))


class Grid(nn.Module):
    """Channels last on the image's grid, windows by reshapes, a bias table per head, a depthwise feed-forward."""

    def __init__(self) -> None:
        super().__init__()
        self.num_heads, self.window = HEADS, 2
        self.qkv, self.proj = nn.Linear(WIDTH, 3 * WIDTH), nn.Linear(WIDTH, WIDTH)
        self.bias_table = nn.Parameter(torch.zeros(HEADS, self.window**2, self.window**2))
        self.up, self.down = nn.Linear(WIDTH, HIDDEN), nn.Linear(HIDDEN, WIDTH)
        self.depthwise = nn.Conv2d(HIDDEN, HIDDEN, 3, padding=1, groups=HIDDEN)
        self.first, self.second = nn.LayerNorm(WIDTH), nn.LayerNorm(WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        B, N, C = x.shape
        side = int(N**0.5)
        grid = x.view(B, side, side, C)
        grid = grid + self.windows(self.first(grid))
        y = self.depthwise(self.up(self.second(grid)).permute(0, 3, 1, 2))
        return (grid + self.down(F.gelu(y.permute(0, 2, 3, 1)))).view(B, N, C)

    def windows(self, x: Tensor) -> Tensor:
        B, H, W, C = x.shape
        w = self.window
        x = x.view(B, H // w, w, W // w, w, C).transpose(2, 3).reshape(-1, w * w, C)
        q, k, v = self.qkv(x).reshape(len(x), w * w, 3, self.num_heads, -1).permute(2, 0, 3, 1, 4)
        weights = (q @ k.mT / q.shape[-1] ** 0.5 + self.bias_table).softmax(-1)
        y = self.proj((weights @ v).transpose(1, 2).flatten(2))
        return y.view(B, H // w, W // w, w, w, C).transpose(2, 3).reshape(B, H, W, C)


class Network(nn.Module):
    """Patches, positions, blocks in a row, a head on the mean of the tokens."""

    def __init__(self, *blocks: nn.Module) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, WIDTH, PATCH, PATCH)
        self.position = nn.Parameter(torch.zeros(1, 16, WIDTH))
        self.blocks = nn.ModuleList(blocks)
        self.norm, self.head = nn.LayerNorm(WIDTH), nn.Linear(WIDTH, SMALL_CLASSES)

    def forward(self, images: Tensor) -> Tensor:
        x = self.patches(images).flatten(2).transpose(1, 2) + self.position
        for block in self.blocks:
            x = block(x)
        return self.head(self.norm(x).mean(1))


def _encoder(norm_first: bool) -> nn.Module:
    return nn.TransformerEncoderLayer(WIDTH, HEADS, HIDDEN, dropout=0.0, batch_first=True, norm_first=norm_first)


def _of(block: type[nn.Module]) -> Builder:
    return lambda is_small, is_fused: Network(*(block() for _ in range(DEPTH)))


def _entry(name: str, family: str, build: Builder) -> Entry:
    return Entry(name, family, "hand-written", input_size=32, small_size=32, build=build, has_two_ways=False)


HANDWRITTEN = (
    _entry("einsum", "bare parameters, einsum", _of(Bare)),
    _entry("multihead", "nn.MultiheadAttention, gated FFN", _of(MultiHead)),
    _entry("postnorm", "norms after the sums, keys with values", _of(PostNorm)),
    _entry("grid", "windows on a grid, depthwise FFN", _of(Grid)),
    _entry(
        "encoder_layer",
        "nn.TransformerEncoderLayer, norms first",
        lambda is_small, is_fused: Network(*(_encoder(True) for _ in range(DEPTH))),
    ),
    _entry(
        "encoder_layer_post",
        "nn.TransformerEncoderLayer, norms last",
        lambda is_small, is_fused: Network(*(_encoder(False) for _ in range(DEPTH))),
    ),
)
