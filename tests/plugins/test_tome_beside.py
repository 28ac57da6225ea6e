"""`tome` beside other strategies: pruning, gates that skip, and those that it can't stand beside."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from counting import counted_macs
from merging import ONE, SITES, SMALL_KWARGS, executed, make, session_of, stated
from torch import nn
from zoo import INPUT, KINDS, SMALL, gap, randomise

from usdcore.errors import UsdcoreError
from usdcore.plans import Base, Plan
from usdcore.recipe import RecipeError, load_recipe
from usdcore.runner import set_mode
from usdcore.session import Session
from usdcore.strategy import Budget
from usdcore.surgery import shrink


def test_with_pruning_one_budget_is_met_by_both(vit: nn.Module, images: torch.Tensor) -> None:
    session = session_of(vit, make("tome", target=0.75), make("prune"), target=0.5)
    session.end_phase(lambda: iter([images]))
    heads = [unit.num_heads for unit in session.units.attention]
    share = counted_macs(session.model.eval(), images) / 5 / session.dense.macs
    assert 0.495 < share <= 0.5
    assert counted_macs(session.model, images) == executed(session, 5)
    assert min(heads) < 4 or min(unit.hidden for unit in session.units.ffn) < 192
    assert len(session.plan.attached) == len(session.gating.gates) > 1  # type: ignore[union-attr]


def test_a_later_phase_solves_for_what_is_left_of_the_budget() -> None:
    images = torch.randn(3, *INPUT)
    model = timm.create_model("vit_tiny_patch16_224", **{**SMALL, "patch_size": 4})
    session = Session(model, ONE, Budget("macs", 0.7, batch_size=4))
    session.begin_phase([make("prune")])
    session.end_phase(lambda: iter([images]))
    session.budget = Budget("macs", 0.5, batch_size=4)
    session.begin_phase([make("tome")])
    share = counted_macs(session.model.eval(), images) / 3 / session.dense.macs
    assert 0.495 < share <= 0.5


def gated(model: nn.Module, scope: Any, **options: Any) -> Session:
    """Merging beside gates that skip some branches, not all."""
    options = {"r": 3, **options}
    budget = Budget("macs", 0.5, batch_size=4, scope=scope)
    session = Session(model, ONE, budget)
    session.begin_phase([make("usdc-dynamic", gate_network="G1", init_logit=0.0), make("tome", **options)])
    torch.manual_seed(4)
    for parameter in session.gating.parameters():  # type: ignore[union-attr]
        nn.init.normal_(parameter, std=0.5) if parameter.ndim > 1 else None
    return session


@pytest.mark.parametrize("scope", ["batch", "sample"])
def test_with_gates_that_skip_it_merges_the_same_masked_and_skipping(
    vit: nn.Module, fused: bool, images: torch.Tensor, scope: Any
) -> None:
    session = gated(vit, scope)
    model = session.model.eval()
    counted = counted_macs(model, images)
    assert counted == executed(session, 5)
    rates = torch.stack([keep.float().mean() for keep in session.gating.state.dynamic.values()])  # type: ignore[union-attr]
    assert 0 < float(rates.mean()) < 1
    with torch.no_grad():
        skipping = model(images)
        set_mode(model, "masked")
        assert gap(model(images), skipping) < 1e-5


def test_where_every_attention_is_skipped_the_stream_is_compared(vit: nn.Module, images: torch.Tensor) -> None:
    session = gated(vit, "batch")
    for gate in session.gating.all():  # type: ignore[union-attr]
        gate.threshold = 1e6
    with torch.no_grad():
        skipping = session.model.eval()(images)
        assert counted_macs(session.model, images) == executed(session, 5)
        set_mode(session.model, "masked")
        assert gap(session.model(images), skipping) < 1e-5


def test_gates_learn_beside_it(vit: nn.Module, images: torch.Tensor) -> None:
    session = gated(vit, "batch")
    session.begin_step(0, 4, images=images)
    session.loss(session.model.train()(images), torch.zeros(5, dtype=torch.long)).backward()
    grads = [p.grad for p in session.gating.parameters()]  # type: ignore[union-attr]
    assert all(grad is not None for grad in grads)
    assert sum(float(grad.abs().sum()) for grad in grads if grad is not None) > 0


def test_a_block_can_not_be_skipped_around_it(vit: nn.Module) -> None:
    with pytest.raises(UsdcoreError, match=r"blocks\.0 can't be skipped as a whole, .* one by one"):
        session_of(vit, make("uvc", skip="block", heads=False, dims=False), make("tome", r=2), target=0.5)


RECIPE = """
name: two
model: {name: vit_tiny_patch16_224, num_classes: 10, kwargs: {patch_size: 2, embed_dim: 32, depth: 2, num_heads: 2}}
data: {source: digits, input_size: 8, batch_size: 64}
budget: {macs: 0.6, batch_size: 32}
seed: 0
train: {lr: 1.0e-3}
phases:
  - {name: both, epochs: 2, strategies: [{use: tome}, {use: dynamicvit, frozen_epochs: 0}]}
"""


def test_another_strategy_that_takes_tokens_away_is_refused(tmp_path: Path, vit: nn.Module) -> None:
    (tmp_path / "r.yaml").write_text(RECIPE)
    with pytest.raises(RecipeError, match="tokens"):
        load_recipe(tmp_path / "r.yaml")
    with pytest.raises(UsdcoreError, match=r"tome and dynamicvit both act on tokens|dynamicvit and tome both act on"):
        session_of(vit, make("dynamicvit", keep_ratio=0.7), make("tome", r=1), target=0.5)


def test_a_dropped_ffn_hands_its_merges_on(vit: nn.Module, images: torch.Tensor) -> None:
    session = stated(vit, [3, 2, 1])
    tome = session.strategies[0]
    records = tome.records({"blocks.0.mlp"}, {}, settle=False)
    assert [(r.site, r.config["r"], r.config["tokens"]) for r in records] == [(SITES[1], 5, 17), (SITES[2], 1, 12)]
    assert tome.records({"blocks.1.mlp", "blocks.2.mlp"}, {}, settle=True)[0].config["r"] == 3


def test_a_dropped_attention_leaves_the_stream_to_compare(images: torch.Tensor) -> None:
    base = Base(name="vit_tiny_patch16_224", kwargs=SMALL_KWARGS, num_classes=7, input_shape=INPUT)
    session = stated(randomise(KINDS["vit"]()).eval(), 3)
    records = session.strategies[0].records(set(), {}, settle=False)
    from usdcore.plans import Drop

    small = shrink(KINDS["vit"](), Plan(base=base, records=(Drop(branch="blocks.1.attn"), *records)), ONE)
    assert small.eval()(images).shape == (5, 7)
