"""torchvision's ViTs, which comes with timm."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torchvision
from torch import nn
from torchvision.models.maxvit import MaxVit
from torchvision.models.swin_transformer import PatchMergingV2, SwinTransformer, SwinTransformerBlockV2

from .entries import SMALL_CLASSES, Builder, Entry

SMALL_SWIN: dict[str, Any] = {
    "patch_size": [4, 4],
    "embed_dim": 24,
    "depths": [2, 2],
    "num_heads": [2, 4],
    "window_size": [4, 4],
    "num_classes": SMALL_CLASSES,
}


def _vit(_: str) -> nn.Module:
    return torchvision.models.VisionTransformer(
        image_size=32,
        patch_size=8,
        num_layers=2,
        num_heads=4,
        hidden_dim=48,
        mlp_dim=96,
        num_classes=SMALL_CLASSES,
    )


def _swin(_: str) -> nn.Module:
    return SwinTransformer(**SMALL_SWIN)


def _swin_v2(_: str) -> nn.Module:
    return SwinTransformer(**SMALL_SWIN, block=SwinTransformerBlockV2, downsample_layer=PatchMergingV2)


def _maxvit(_: str) -> nn.Module:
    return MaxVit(
        input_size=(64, 64),
        stem_channels=16,
        partition_size=4,
        block_channels=[16, 32],
        block_layers=[1, 1],
        head_dim=8,
        stochastic_depth_prob=0.0,
        num_classes=SMALL_CLASSES,
    )


def _either(name: str, small: Callable[[str], nn.Module]) -> Builder:
    def build(is_small: bool, is_fused: bool) -> nn.Module:
        return small(name) if is_small else torchvision.models.get_model(name, weights=None)

    return build


def _entry(name: str, family: str, small: Callable[[str], nn.Module], small_size: int = 32) -> Entry:
    build = _either(name, small)
    return Entry(name, family, "torchvision", small_size=small_size, build=build, has_two_ways=False)


TORCHVISION = (
    _entry("vit_b_16", "ViT", _vit),
    _entry("swin_t", "Swin", _swin),
    _entry("swin_v2_t", "Swin v2", _swin_v2),
    _entry("maxvit_t", "MaxViT", _maxvit, 64),
)
