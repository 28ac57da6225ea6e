"""Small isotropic models of timm's families, and the model that cutting a stream must give: norms over what is kept."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence

import timm
import torch
from timm.models.mlp_mixer import MlpMixer
from torch import Tensor, nn
from torch.nn import functional as F
from zoo import SMALL, randomise

TWO = {**SMALL, "depth": 2}


def _timm(name: str, **kwargs: object) -> Callable[[], nn.Module]:
    return lambda: timm.create_model(name, **{**TWO, **kwargs})


FAMILIES: dict[str, Callable[[], nn.Module]] = {
    "vit": _timm("vit_tiny_patch16_224"),
    "pooled": _timm("vit_tiny_patch16_224", class_token=False, global_pool="avg"),
    "distilled": _timm("deit_tiny_distilled_patch16_224"),
    "deit3": _timm("deit3_small_patch16_224"),
    "registers": _timm("vit_small_patch14_reg4_dinov2"),
    "parallel": _timm("vit_small_patch16_18x2_224"),
    "beit": _timm("beit_base_patch16_224"),
    "eva02": _timm("eva02_tiny_patch14_224"),
    "eva02_split": _timm("eva02_base_patch14_224"),
    "dinov3": _timm("vit_small_patch16_dinov3"),
    "cait": _timm("cait_xxs24_224"),
    "relpos": _timm("vit_relpos_small_patch16_224"),
    "xcit": _timm("xcit_nano_12_p8_224"),
    "mixer": lambda: MlpMixer(img_size=32, patch_size=8, embed_dim=48, num_blocks=2, num_classes=7),
}


def made(family: str) -> nn.Module:
    """A family's model, randomised, in evaluation mode."""
    torch.manual_seed(0)
    return randomise(FAMILIES[family]()).eval().requires_grad_(False)


class KeptNorm(nn.Module):
    """A LayerNorm or RMSNorm over some channels, zeros at all others."""

    def __init__(self, norm: nn.Module, kept: Tensor) -> None:
        super().__init__()
        self.norm, self.kept = norm, kept

    def forward(self, x: Tensor) -> Tensor:
        own = x[..., self.kept]
        weight, bias = (
            None if t is None else t[self.kept] for t in (self.norm.weight, getattr(self.norm, "bias", None))
        )
        if isinstance(self.norm, nn.LayerNorm):
            own = F.layer_norm(own, own.shape[-1:], weight, bias, self.norm.eps)
        else:
            own = F.rms_norm(own, own.shape[-1:], weight, self.norm.eps)
        out = torch.zeros_like(x)
        out[..., self.kept] = own
        return out


def with_kept_norms(model: nn.Module, norms: Sequence[str], kept: Sequence[int]) -> nn.Module:
    """A copy whose modules `norms` run over the channels `kept` alone; all else is as it was."""
    model = copy.deepcopy(model)
    for path in norms:
        owner, _, name = path.rpartition(".")
        setattr(model.get_submodule(owner), name, KeptNorm(model.get_submodule(path), torch.tensor(kept)))
    return model
