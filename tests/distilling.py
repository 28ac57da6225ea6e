"""Small students and teachers for the tests of distillation."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import timm
import torch
from safetensors.torch import save_file
from torch import nn
from zoo import INPUT, SMALL, randomise

from usdcore.hooks import registry
from usdcore.session import Session
from usdcore.strategy import Budget, Strategy

TARGET = torch.tensor([0, 1, 2, 3, 4])
VIT, DISTILLED = "vit_tiny_patch16_224", "deit_tiny_distilled_patch16_224"


def make(name: str = "distill", **options: Any) -> Strategy:
    config = registry().config("strategy", name).model_validate({"use": name, **options})
    return registry().load("strategy", name)(config)


def model_of(name: str = VIT, seed: int = 0, **kwargs: Any) -> nn.Module:
    return randomise(timm.create_model(name, **{**SMALL, **kwargs}), seed).eval()


def session_of(model: nn.Module, *strategies: Strategy, target: float = 1.0) -> Session:
    session = Session(model, torch.zeros(1, *INPUT), Budget("macs", target, batch_size=5))
    session.begin_phase(strategies)
    return session


def step(session: Session, images: torch.Tensor, number: int = 0, ids: torch.Tensor | None = None) -> dict[str, Any]:
    """A forward in training mode, and its loss terms."""
    session.begin_step(number, 10, images=images, ids=ids)
    return session.losses(session.model.train()(images), TARGET)


def weights_of(model: nn.Module, path: Path) -> str:
    save_file({name: tensor.contiguous() for name, tensor in model.state_dict().items()}, path)
    return str(path)


def timm_teacher(path: Path, name: str = VIT, seed: int = 1, **kwargs: Any) -> dict[str, Any]:
    """A teacher with weights of its own, as a recipe states it."""
    stated = {key: value for key, value in {**SMALL, **kwargs}.items() if key != "num_classes"}
    return {"model": name, "weights": weights_of(model_of(name, seed, **kwargs), path), "kwargs": stated}
