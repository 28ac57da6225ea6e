"""Families of timm whose heads or channels are known by more than a reshape: pruned exactly, at a small size."""

from __future__ import annotations

from typing import Any

import pytest
import timm
import torch
from exact import check_exact
from timm.layers import MultiQueryAttention2d
from units.hosts import Residual
from units.rule_hosts import CHANNELS, ConvNet
from zoo import randomise

from usdcore.units import find_units

SMALL = {"img_size": 32, "patch_size": 8, "embed_dim": 48, "depth": 2, "num_heads": 4}
PYRAMID = {"img_size": 32, "window_size": 4, "embed_dim": 16, "depths": (2, 1), "num_heads": (2, 4)}
LEVIT = {"img_size": 64, "embed_dim": (32, 48), "key_dim": 8, "num_heads": (2, 3), "depth": (1, 1)}
CROSS = {
    "img_size": 32,
    "img_scale": (1.0, 1.0),
    "patch_size": (4, 8),
    "embed_dim": (24, 48),
    "depth": ((1, 1, 0),),
    "num_heads": (2, 4),
    "mlp_ratio": (2, 2, 1),
}

HYBRID = {"depths": (1, 1), "embed_dim": (32, 32)}
MOBILE = {"dims": (16, 16, 16, 16), "depths": (1, 1, 1, 1), "global_block_counts": (0, 0, 0, 0)}
FORMER = {"depths": (1, 2), "embed_dims": (16, 32), "num_vit": 1, "downsamples": (False, True)}

# What is special about each; the model; its arguments; its image size.
FAMILIES: dict[str, tuple[str, dict[str, Any], int]] = {
    "table of relative positions": ("swin_tiny_patch4_window7_224", PYRAMID, 32),
    "table in fused attention, bare weights": ("beit_base_patch16_224", SMALL, 32),
    "table viewed by a tuple": ("vit_relpos_base_patch32_plus_rpn_256", {**SMALL, "rel_pos_type": "bias"}, 32),
    "bias made by a network": ("vit_relpos_small_patch16_224", SMALL, 32),
    "cosine attention": ("swinv2_tiny_window8_256", PYRAMID, 32),
    "cosine attention, temperature": ("swinv2_cr_tiny_ns_224", {**PYRAMID, "patch_size": 2}, 32),
    "biases kept for evaluation": ("levit_128s", LEVIT, 64),
    "attention in convolutions": ("levit_conv_128s", LEVIT, 64),
    "talking heads": ("cait_xxs24_224", SMALL, 32),
    "attention over channels": ("xcit_nano_12_p16_224", SMALL, 32),
    "positions by a parameter over dims": (
        "samvit_base_patch16_224",
        {**SMALL, "window_size": 2, "global_attn_indexes": (1,)},
        32,
    ),
    "one query, of a token projected from another stream": ("crossvit_tiny_240", CROSS, 32),
    "tables looked up by products": ("maxvit_tiny_tf_224", {**HYBRID, "img_size": 64}, 64),
}


@pytest.mark.parametrize("family", FAMILIES)
def test_all_heads_are_prunable(family: str, fused: bool) -> None:
    name, arguments, size = FAMILIES[family]
    torch.manual_seed(0)
    model = randomise(timm.create_model(name, num_classes=5, **arguments)).double().eval().requires_grad_(False)
    images = torch.randn(2, 3, size, size, dtype=torch.float64)
    model(images)  # fills what the host keeps
    units = find_units(model, torch.zeros(1, 3, size, size))
    assert units.attention
    check_exact(model, images, [unit.groups[0].name for unit in units.attention])


@pytest.mark.parametrize(
    ("name", "arguments", "size"),
    [
        ("efficientformer_l1", FORMER, 56),
        ("edgenext_xx_small", MOBILE, 64),
        ("coatnet_pico_rw_224", {**HYBRID, "img_size": 64, "block_type": ("C", "C")}, 64),
    ],
)
def test_channels_of_convolutions_are_prunable(name: str, arguments: dict[str, Any], size: int) -> None:
    torch.manual_seed(0)
    model = randomise(timm.create_model(name, num_classes=5, **arguments)).double().eval().requires_grad_(False)
    units = find_units(model, torch.zeros(1, 3, size, size))
    prunable = [unit.groups[0].name for unit in units.ffn if unit.groups[0].reason is None]
    assert len(prunable) >= 2
    check_exact(model, torch.randn(2, 3, size, size, dtype=torch.float64), prunable)


@pytest.mark.parametrize("strides", [{}, {"query_strides": 2}, {"kv_stride": 2}], ids=str)
def test_one_key_for_all_heads(strides: dict[str, int], fused: bool) -> None:
    layer = MultiQueryAttention2d(CHANNELS, num_heads=4, key_dim=6, value_dim=5, **strides)
    model = randomise(ConvNet(Residual(layer))).double().eval()
    images = torch.randn(2, 3, 8, 8, dtype=torch.float64)
    check_exact(model, images, ["blocks.0.inner:heads"])
