"""Hugging Face's ViTs, with random weights. transformers is needed for them alone; without it they are left out."""

from __future__ import annotations

import importlib
from typing import Any

from torch import nn

from .entries import SMALL_CLASSES, Builder, Entry

PLAIN: dict[str, Any] = {
    "hidden_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 96,
    "image_size": 32,
    "patch_size": 8,
}
PYRAMID: dict[str, Any] = {
    "depths": [1, 1, 1, 1],
    "hidden_sizes": [16, 32, 32, 48],
    "num_attention_heads": [2, 2, 4, 4],
}


def _build(kind: str, config: dict[str, Any], has_two_ways: bool) -> Builder:
    def build(is_small: bool, is_fused: bool) -> nn.Module:
        library: Any = importlib.import_module("transformers")
        described = getattr(library, f"{kind}Config")(**config, num_labels=SMALL_CLASSES)
        described._attn_implementation = "sdpa" if is_fused and has_two_ways else "eager"
        made: nn.Module = getattr(library, f"{kind}ForImageClassification")(described)
        return made

    return build


def _entry(kind: str, family: str, config: dict[str, Any], size: int = 32, has_two_ways: bool = True) -> Entry:
    return Entry(
        f"{kind}ForImageClassification",
        family,
        "transformers",
        input_size=size,
        small_size=size,
        build=_build(kind, config, has_two_ways),
        needs="transformers",
        has_two_ways=has_two_ways,
    )


TRANSFORMERS = (
    _entry("ViT", "ViT", PLAIN),
    _entry("DeiT", "DeiT", PLAIN),
    _entry("Beit", "BEiT", PLAIN | {"use_relative_position_bias": True, "layer_scale_init_value": 0.1}),
    _entry("Dinov2", "DINOv2", PLAIN),
    _entry("Dinov2WithRegisters", "DINOv2, registers", PLAIN),
    _entry("ViTMSN", "ViT-MSN", PLAIN),
    _entry(
        "Swin",
        "Swin",
        {
            "image_size": 32,
            "patch_size": 4,
            "embed_dim": 24,
            "depths": [2, 2],
            "num_heads": [2, 4],
            "window_size": 4,
        },
    ),
    _entry("Segformer", "SegFormer", PYRAMID, 64),
    _entry("PvtV2", "PVT v2", PYRAMID | {"image_size": 64}, 64, has_two_ways=False),
    _entry("Pvt", "PVT", PYRAMID | {"image_size": 64}, 64, has_two_ways=False),
)
