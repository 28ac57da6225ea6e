"""Small models of six kinds of plain ViT, with everything randomised that default initialisation would hide."""

from __future__ import annotations

import copy
import functools

import torch
from torch import Tensor, nn

from usdcore.construct import create
from usdcore.gates import ForwardState
from usdcore.plans import Base
from usdcore.runner import gating_of

#: Of one image, [C, H, W].
INPUT = (3, 32, 32)
CLASSES = 7
SIZE = {"img_size": 32, "patch_size": 8, "embed_dim": 48, "depth": 3, "num_heads": 4}


def _base(name: str, **kwargs: object) -> Base:
    return Base(name=name, kwargs={**SIZE, **kwargs}, num_classes=CLASSES, input_shape=INPUT)


BASES: dict[str, Base] = {
    "vit": _base("vit_tiny_patch16_224"),
    "deit": _base("deit_tiny_patch16_224"),
    "distilled": _base("deit_tiny_distilled_patch16_224"),
    "layer_scale": _base("deit3_small_patch16_224"),
    "qk_norm": _base("vit_tiny_patch16_224", qk_norm=True),
    "swiglu": _base("vit_tiny_patch16_224", mlp_layer="timm.layers:SwiGLUPacked"),
}
"""By the kit's name: what `usdcore.artifact.create` makes the model of."""


#: Blocks of the models that the laws are tried on: enough for one block to stand before another.
DEPTH = 2


def base_of(name: str) -> Base:
    """One of the kit's models as the laws use it."""
    return BASES[name].model_copy(update={"kwargs": {**BASES[name].kwargs, "depth": DEPTH}})


def build(name: str, seed: int = 0) -> nn.Module:
    """That model, randomised, in evaluation mode."""
    return copy.deepcopy(_built(name, seed))


@functools.cache
def _built(name: str, seed: int) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return randomise(create(base_of(name)), seed).eval()


@torch.no_grad()
def randomise(model: nn.Module, seed: int = 0) -> nn.Module:
    """Norms, biases, LayerScale and BatchNorm statistics away from their trivial values; weights large enough to
    matter. In place; returns the model.
    """
    generator = torch.Generator().manual_seed(seed)

    def noise(like: Tensor) -> Tensor:
        return torch.randn(like.shape, generator=generator).to(like)

    for name, parameter in model.named_parameters():
        if parameter.ndim == 1:
            is_scale = "gamma" in name or "norm" in name
            parameter.copy_(0.7 + 0.3 * noise(parameter) if is_scale else 0.3 * noise(parameter))
        else:
            parameter.copy_(noise(parameter) * 1.5 / parameter[0].numel() ** 0.5)
    for module in model.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm) and module.running_mean is not None:
            assert module.running_var is not None
            module.running_mean.copy_(noise(module.running_mean))
            module.running_var.copy_(0.5 + torch.rand(module.running_var.shape, generator=generator))
    return model


def batch(number: int, size: int = 8, shape: tuple[int, ...] = INPUT) -> tuple[Tensor, Tensor]:
    """Random images [B, C, H, W] and labels [B]; a function of the number."""
    generator = torch.Generator().manual_seed(number)
    images = torch.randn(size, *shape, generator=generator)
    return images, torch.randint(CLASSES, (size,), generator=generator)


@torch.no_grad()
def logits(model: nn.Module, images: Tensor) -> Tensor:
    """Of a model in evaluation mode, [B, K] or, of several heads, [B, sum of K]."""
    first_again(model)
    output = model.eval()(images)
    return output if isinstance(output, Tensor) else torch.cat(output, -1)


def first_again(model: nn.Module) -> None:
    """The next forward counts as the first one: gates that draw by the number of the forward draw the same again."""
    gating = gating_of(model)
    if gating is not None:
        gating.state = ForwardState(blocks=gating.blocks)


def gap(a: Tensor, b: Tensor) -> float:
    """The largest difference over the largest value."""
    return float((a - b).abs().max() / b.abs().max())
