"""Small models of the six kinds of plain ViT, with everything randomised that default initialisation would hide."""

from __future__ import annotations

from collections.abc import Callable

import timm
import torch
from timm.layers import SwiGLUPacked
from torch import nn

SMALL = {"img_size": 32, "patch_size": 8, "embed_dim": 48, "depth": 3, "num_heads": 4, "num_classes": 7}
INPUT = (3, 32, 32)

KINDS: dict[str, Callable[[], nn.Module]] = {
    "vit": lambda: timm.create_model("vit_tiny_patch16_224", **SMALL),
    "deit": lambda: timm.create_model("deit_tiny_patch16_224", **SMALL),
    "distilled": lambda: timm.create_model("deit_tiny_distilled_patch16_224", **SMALL),
    "layer_scale": lambda: timm.create_model("deit3_small_patch16_224", **SMALL),
    "qk_norm": lambda: timm.create_model("vit_tiny_patch16_224", qk_norm=True, **SMALL),
    "swiglu": lambda: timm.create_model("vit_tiny_patch16_224", mlp_layer=SwiGLUPacked, **SMALL),
}


@torch.no_grad()
def randomise(model: nn.Module, seed: int = 0) -> nn.Module:
    """Norms, biases, LayerScale and BatchNorm statistics away from their trivial values; weights large enough to
    matter.
    """
    generator = torch.Generator().manual_seed(seed)

    def noise(like: torch.Tensor) -> torch.Tensor:
        return torch.randn(like.shape, generator=generator).to(like)

    for name, parameter in model.named_parameters():
        if parameter.ndim == 1:
            parameter.copy_(
                0.7 + 0.3 * noise(parameter) if "gamma" in name or "norm" in name else 0.3 * noise(parameter)
            )
        else:
            parameter.copy_(noise(parameter) * 1.5 / parameter[0].numel() ** 0.5)
    for module in model.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            module.running_mean.copy_(noise(module.running_mean))  # type: ignore[union-attr, arg-type]
            module.running_var.copy_(0.5 + torch.rand(module.running_var.shape, generator=generator))  # type: ignore[union-attr]
    return model


def gap(a: torch.Tensor, b: torch.Tensor) -> float:
    """The largest difference over the largest value."""
    return float((a - b).abs().max() / b.abs().max())
