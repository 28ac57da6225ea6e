"""Schedules by timm: they warm up, end where the recipe says, and stay where it says so."""

from __future__ import annotations

import pytest
import torch

from usdcore.engine.optim import Schedule, model_optimizer
from usdcore.recipe import TrainConfig


def rates(train: TrainConfig, epochs: int) -> list[float]:
    optimizer = model_optimizer(torch.nn.Linear(2, 2), train)
    schedule = Schedule(optimizer, train, epochs, 10)
    found = []
    for update in range(epochs * 10):
        schedule.set(update)
        found.append(optimizer.param_groups[0]["lr"])
    return found


@pytest.mark.parametrize(("epochs", "warmup"), [(30, 5), (10, 5), (4, 0), (1, 1)])
def test_cosine_ends_at_min_lr(epochs: int, warmup: int) -> None:
    found = rates(TrainConfig(lr=1.0, warmup_epochs=warmup, min_lr=0.0), epochs)
    assert max(found) <= 1.0
    if warmup < epochs:
        assert found[-1] < 0.05
    if warmup:
        assert found[0] < 0.2


def test_none_is_constant() -> None:
    assert set(rates(TrainConfig(lr=0.5, sched="none"), 5)) == {0.5}
