"""`random-gates`: the rate that meets the budget, other draws each time, the same ones for the same seed."""

from __future__ import annotations

import pytest
import torch
from counting import counted_macs
from torch import Tensor, nn
from zoo import INPUT

from usdcore.errors import UsdcoreError
from usdcore.hooks import registry
from usdcore.session import Session
from usdcore.strategy import Budget
from usdcore_random.strategy import RandomGates


def begun(model: nn.Module, target: float = 0.7, scope: str = "sample", **options: object) -> Session:
    config = registry().config("strategy", "random-gates").model_validate({"use": "random-gates", **options})
    made = Session(model, torch.zeros(1, *INPUT), Budget("macs", target, 5, scope))  # type: ignore[arg-type]
    made.begin_phase([RandomGates(config)])
    made.model.eval()
    return made


@pytest.mark.parametrize("scope", ["batch", "sample"])
def test_the_rate_meets_the_budget(vit: nn.Module, images: Tensor, scope: str) -> None:
    made = begun(vit, scope=scope)
    executed = made.execution(lambda: torch.randn(200, *images.shape))
    assert executed.macs / made.dense.macs == pytest.approx(0.7, abs=0.03)
    assert set(executed.rates) == {"blocks.1.attn", "blocks.1.mlp", "blocks.2.attn", "blocks.2.mlp"}
    with torch.no_grad():
        one = made.execution(lambda: [images]).macs
        assert one * len(images) == counted_macs(made.model, images)


def test_the_dial_turns_the_rate(vit: nn.Module, images: Tensor) -> None:
    made = begun(vit)
    found = made.calibrate(lambda: torch.randn(60, *images.shape), target=0.5, tolerance=0.02)
    assert found is not None
    assert found.execution.macs / made.dense.macs == pytest.approx(0.5, abs=0.03)


def test_what_can_not_be_met(vit: nn.Module) -> None:
    with pytest.raises(UsdcoreError, match=r"random-gates can execute 0\.\d+ to 1\.0000 of the dense MACs, not 0\.05"):
        begun(vit, 0.05)
    with pytest.raises(UsdcoreError, match="no branch of this model can be skipped"):
        begun(vit, keep_first=9)
