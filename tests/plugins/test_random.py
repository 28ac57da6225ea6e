"""`random-gates`: the rate that meets the budget, other draws each time, the same ones for the same seed."""

from __future__ import annotations

import pytest
import torch
from counting import counted_macs
from pydantic import ValidationError
from torch import Tensor, nn
from zoo import INPUT

from usdcore.costs import Tree
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


RATES = {"blocks.0.mlp": 0.25, "blocks.1": 0.9, "blocks.2.attn": 0.6}


def test_each_branch_and_block_runs_at_its_own_rate(vit: nn.Module, images: Tensor) -> None:
    made = begun(vit, target=0.99, rates=RATES)
    executed = made.execution(lambda: torch.randn(400, *images.shape))
    rates = {"blocks.0.mlp": 0.25, "blocks.1.attn": 0.9, "blocks.1.mlp": 0.9, "blocks.2.attn": 0.6}
    assert executed.rates == pytest.approx(rates, abs=0.04)
    expected = Tree(made.units).executed(rates)
    assert executed.macs == pytest.approx(expected, rel=0.01)
    assert made.execution(lambda: [images]).macs * len(images) == counted_macs(made.model, images)


def test_no_budget_moves_stated_rates(vit: nn.Module, images: Tensor) -> None:
    made, many = begun(vit, target=0.5, rates=RATES), torch.randn(20, *images.shape)
    made.end_phase(lambda: many)
    (before,) = made.plan.attached.values()
    made.calibrate(lambda: many)
    assert made.plan.attached == {before.key: before}
    assert before.config["rates"] == [0.25, 0.9, 0.6]
    assert before.config["threshold"] is None


def test_what_others_remove_has_no_gate(vit: nn.Module, images: Tensor) -> None:
    made = begun(vit, rates=RATES)
    (strategy,) = made.strategies
    (record,) = strategy.records({"blocks.0.mlp", "blocks.1.attn"}, {}, settle=False)
    assert record.config["sites"] == ["blocks.1", "blocks.2.attn"]
    assert (record.config["rates"], record.config["tap"]) == ([0.9, 0.6], "blocks.1")
    (record,) = strategy.records({"blocks.0.mlp", "blocks.1.attn", "blocks.1.mlp"}, {}, settle=False)
    assert (record.config["sites"], record.config["tap"]) == (["blocks.2.attn"], "blocks.2")
    assert strategy.records({"blocks.0.mlp", "blocks.1.attn", "blocks.1.mlp", "blocks.2.attn"}, {}, settle=True) == []


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"rates": {"blocks.1.mpl": 0.5}}, UsdcoreError, "no branch or block 'blocks.1.mpl'; did you mean"),
        (
            {"rates": {"blocks.1": 0.5, "blocks.1.mlp": 0.5}},
            UsdcoreError,
            "blocks.1 is skipped with all of its branches, blocks.1.mlp too; name one of them",
        ),
        ({"rates": {"blocks.1": 1.0}}, ValidationError, "less than 1"),
        ({"rates": {"blocks.1": 0.0}}, ValidationError, "greater than 0"),
        ({"rates": {"blocks.1": float("nan")}}, ValidationError, "finite"),
        ({"rates": {}}, ValidationError, "at least 1 item"),
        ({"rates": RATES, "ffn": False}, ValidationError, "no choice to ffn; give one or the other"),
    ],
)
def test_mistakes(vit: nn.Module, options: dict[str, object], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        begun(vit, **options)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"rates": [0.5, 0.5]}, "2 rates for 3 sites"),
        ({"rates": [0.5, 0.5, 1.5]}, "rates.2: .*less than 1"),
        ({"rates": [0.5, 0.5, float("nan")]}, "rates.2"),
        ({"threshold": float("inf")}, "threshold: .*finite"),
        ({"rate": 0.5}, "rate: Extra inputs"),
    ],
)
def test_hostile_records(vit: nn.Module, change: dict[str, object], message: str) -> None:
    (record,) = begun(vit, rates=RATES).strategies[0].records(set(), {}, settle=False)
    changed = record.model_copy(update={"config": {**record.config, **change}})
    with pytest.raises(UsdcoreError, match=f"the plan's gate at branches can't be built: .*{message}"):
        RandomGates.rebuild(changed)


def test_recipes_without_rates_keep_their_hash() -> None:
    config = registry().config("strategy", "random-gates")
    assert "rates" not in config.model_validate({"use": "random-gates"}).model_dump()
    assert config.model_validate({"use": "random-gates", "rates": RATES}).model_dump()["rates"] == RATES
