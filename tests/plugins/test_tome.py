"""`tome` in a model: what it computes, what it costs, how it is written down, and beside whom it stands."""

from __future__ import annotations

import copy
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from counting import counted_macs
from timm.layers import set_fused_attn
from torch import nn
from zoo import INPUT, KINDS, SMALL, gap, randomise

import usdcore
from usdcore.artifact import save
from usdcore.costs import Tree
from usdcore.errors import UsdcoreError
from usdcore.executed import batch_macs
from usdcore.hooks import registry
from usdcore.plans import Attach, Base, Plan
from usdcore.recipe import RecipeError, load_recipe
from usdcore.runner import set_mode
from usdcore.session import Session
from usdcore.strategy import Budget, Strategy
from usdcore.surgery import shrink
from usdcore_tome.following import sources

ONE = torch.zeros(1, *INPUT)
SITES = [f"blocks.{i}.mlp:tokens" for i in range(3)]


def make(name: str, **options: Any) -> Strategy:
    config = registry().config("strategy", name).model_validate({"use": name, **options})
    return registry().load("strategy", name)(config)


def session_of(model: nn.Module, *strategies: Strategy, target: float = 1.0) -> Session:
    session = Session(model, ONE, Budget("macs", target, batch_size=4))
    session.begin_phase(strategies)
    session.model.eval()
    return session


def stated(model: nn.Module, r: Any, **options: Any) -> Session:
    """A session of a model that merges r tokens a block, whatever that costs: it is asked for parameters alone."""
    session = Session(model, ONE, Budget("params", 1.0, batch_size=4))
    session.begin_phase([make("tome", r=r, **options)])
    session.model.eval()
    return session


def executed(session: Session, size: int) -> int:
    """By the cost model, of the last forward."""
    gating = session.gating
    assert gating is not None
    state = gating.state
    return batch_macs(session.units, state.dynamic, gating.count_macs(), size, state.counts, gating.prices)


# --- what it computes


def test_without_merges_it_is_the_host(vit: nn.Module, images: torch.Tensor) -> None:
    with torch.no_grad():
        expected = vit(images)
        assert stated(copy.deepcopy(vit), 0).gating is None
        session = stated(vit, 3)
        assert gap(session.model(images), expected) > 1e-3
        for gate in session.gating.all():  # type: ignore[union-attr]
            gate.neutral()
        for training in (False, True):
            assert gap(session.model.train(training)(images), expected) < 1e-5


def test_fused_and_unfused_attention_agree(images: torch.Tensor) -> None:
    found = []
    for fused in (True, False):
        set_fused_attn(fused)
        torch.manual_seed(0)
        found.append(stated(randomise(KINDS["vit"]()).eval(), 3).model)
    set_fused_attn(True)
    with torch.no_grad():
        assert gap(found[0](images), found[1](images)) < 1e-5


def test_values_are_not_taken_for_keys_where_a_head_is_as_wide_as_there_are_tokens() -> None:
    """16 tokens and heads of 16: the product with the values is square too."""
    found = []
    kwargs = {**SMALL, "embed_dim": 32, "num_heads": 2, "class_token": False, "global_pool": "avg"}
    for fused in (True, False):
        set_fused_attn(fused)
        torch.manual_seed(0)
        found.append(stated(randomise(timm.create_model("vit_tiny_patch16_224", **kwargs)).eval(), 4).model)
    set_fused_attn(True)
    images = torch.randn(8, *INPUT, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        assert gap(found[0](images), found[1](images)) < 1e-5


@pytest.fixture
def twins(fused: bool) -> tuple[nn.Module, torch.Tensor]:
    """A model in whose eyes every patch of these images has equals, as it has no positions."""
    torch.manual_seed(0)
    model = randomise(KINDS["vit"]()).eval()
    nn.init.zeros_(model.pos_embed)  # type: ignore[arg-type]
    patch = torch.randn(5, 3, 8, 8, generator=torch.Generator().manual_seed(2))
    rows = torch.cat([patch[:, :, :, :].repeat(1, 1, 1, 2), torch.randn(5, 3, 8, 16)], -1)
    return model, rows.repeat(1, 1, 4, 1)


def test_merging_equal_tokens_changes_nothing_for_the_others(twins: Any) -> None:
    """The law of proportional attention: 2 of 4 patches in a row are equal, and rows repeat."""
    model, images = twins
    with torch.no_grad():
        expected = model(images)
        merged = stated(copy.deepcopy(model), [4, 0, 0])
        assert gap(merged.model(images), expected) < 1e-5
        assert merged.gating.state.key_weight.shape == (5, 13)  # type: ignore[union-attr]
        plain = stated(model, [4, 0, 0], proportional=False)
        assert gap(plain.model(images), expected) > 1e-3
        assert plain.gating.state.key_weight is None  # type: ignore[union-attr]


def test_training_runs_on_merged_tokens_and_gradients_pass(vit: nn.Module, images: torch.Tensor) -> None:
    session = stated(vit, 3)
    model = session.model.train()
    model(images).square().sum().backward()
    assert all(p.grad is not None and bool(p.grad.isfinite().all()) for p in model.parameters())
    trained = model.pos_embed.grad  # type: ignore[union-attr]
    assert bool((trained.abs().sum(-1) > 0).all()), "a merged token has no gradient"
    with torch.no_grad():
        assert torch.equal(model(images), model.eval()(images))  # there is no dropout in it


def test_autocast_merges_too(vit: nn.Module, images: torch.Tensor) -> None:
    model = stated(vit, 3).model
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        assert gap(model(images).float(), model(images).float()) == 0
        assert bool(model(images).isfinite().all())


def test_class_and_distillation_tokens_are_never_merged(images: torch.Tensor) -> None:
    session = stated(randomise(KINDS["distilled"]()).eval(), 8)
    gates = list(session.gating.all())  # type: ignore[union-attr]
    assert [(gate.stated.prefix, gate.stated.tokens, gate.stated.r) for gate in gates] == [
        (2, 18, 8),
        (2, 10, 4),
        (2, 6, 2),
    ]
    found = sources(session.model, images)
    assert found.shape == (5, 18)
    assert found[:, :2].tolist() == [[0, 1]] * 5
    assert bool((found[:, 2:] > 1).all())


def test_what_became_of_each_token(vit: nn.Module, images: torch.Tensor) -> None:
    session = stated(vit, [3, 2, 1])
    found = sources(session.model, images)
    left = 17 - 6
    sizes = session.gating.state.notes["tome"].size  # type: ignore[union-attr]
    for own, size in zip(found, sizes, strict=True):
        assert torch.equal(torch.bincount(own, minlength=left).float(), size)
    with pytest.raises(UsdcoreError, match="merges no tokens"):
        sources(KINDS["vit"](), images)


# --- what it costs


@pytest.mark.parametrize(
    ("kind", "options"),
    [
        ("vit", {"r": 3}),
        ("distilled", {"r": [5, 0, 2]}),
        ("qk_norm", {"r": [0, 3, 0]}),
        ("layer_scale", {"r": 2, "inflection": -1.0}),
        ("swiglu", {"r": 8}),
    ],
)
def test_executed_macs_are_what_is_counted(kind: str, images: torch.Tensor, options: dict[str, Any]) -> None:
    model = randomise(KINDS[kind]()).eval()
    session = stated(model, **options)
    counted = counted_macs(session.model, images)
    assert counted == executed(session, 5)
    assert counted < 5 * session.dense.macs
    assert counted / 5 / session.dense.macs == pytest.approx(_least(session))


def _least(session: Session) -> float:
    """What the core takes for the fewest MACs that gates may leave."""
    session.budget = Budget("macs", 1.0, batch_size=4)
    session._tree = Tree(session.units, "macs", session.gating.prices)  # type: ignore[union-attr]
    return session.least()


@pytest.mark.parametrize("target", [0.5, 0.65, 0.8])
def test_r_is_solved_for_the_budget(target: float) -> None:
    torch.manual_seed(0)
    kwargs = {**SMALL, "patch_size": 4}
    session = session_of(timm.create_model("vit_tiny_patch16_224", **kwargs), make("tome"), target=target)
    images = torch.randn(3, *INPUT)
    share = counted_macs(session.model, images) / 3 / session.dense.macs
    assert target - 0.005 < share <= target
    end = session.end_phase(lambda: iter([images]))
    assert end.searched == pytest.approx(share)
    found = session.calibrate(lambda: iter([images]))
    assert found is not None
    assert found.execution.macs == pytest.approx(share * session.dense.macs)


def test_the_training_loop_knows_what_is_spent(vit: nn.Module, images: torch.Tensor) -> None:
    session = session_of(vit, make("tome", r=3), target=0.734)
    share = counted_macs(session.model, images) / 5 / session.dense.macs
    session.begin_step(0, 1, images=images)
    session.losses(session.model.train()(images), torch.zeros(5, dtype=torch.long))
    assert float(session.ctx.spent) == pytest.approx(share, rel=1e-6)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("options", "target", "message"),
    [
        ({"r": [1, 2]}, 0.9, r"tome\.r states 2 blocks and this model has 3 that can merge"),
        ({"r": 3}, 0.95, r"tome\.r leaves 0\.\d{4} of the dense model's MACs .* set budget\.macs to 0\.\d+ or less"),
        ({"r": 1}, 0.5, r"can't be reached"),
        ({}, 0.2, r"0\.2 of the dense MACs can't be reached by merging, which leaves at least 0\.\d{4}"),
    ],
)
def test_a_schedule_that_misses_the_budget_is_refused_at_once(
    vit: nn.Module, options: dict[str, Any], target: float, message: str
) -> None:
    with pytest.raises(UsdcoreError, match=message):
        session_of(vit, make("tome", **options), target=target)


def test_a_budget_of_parameters_needs_a_stated_r(vit: nn.Module) -> None:
    session = Session(vit, ONE, Budget("params", 1.0, batch_size=4))
    with pytest.raises(UsdcoreError, match=r"tome\.r: null is solved for a budget of MACs"):
        session.begin_phase([make("tome")])
    session = Session(KINDS["vit"](), ONE, Budget("params", 1.0, batch_size=4))
    session.begin_phase([make("tome", r=3)])
    assert session.gating is not None


# --- where it can stand


def test_a_block_without_attention_before_its_ffn_is_refused() -> None:
    model = timm.create_model("vit_pwee_patch16_reg1_gap_256", **{**SMALL, "depth": 2})
    with pytest.raises(UsdcoreError, match="no block of this model has the two as branches in this order"):
        stated(model, 2)


@pytest.mark.parametrize(
    "extra", [{"class_token": False, "global_pool": "avg"}, {"reg_tokens": 4}, {"block_fn": "x"}], ids=str
)
def test_other_heads_and_layouts(extra: dict[str, Any], images: torch.Tensor) -> None:
    if "block_fn" in extra:
        model = timm.create_model("vit_small_patch16_18x2_224", **SMALL)
    else:
        model = timm.create_model("vit_tiny_patch16_224", **SMALL, **extra)
    session = stated(randomise(model).eval(), 3)
    assert counted_macs(session.model, images) == executed(session, 5)


def test_a_model_that_needs_tokens_in_their_places_is_refused() -> None:
    model = timm.create_model("vit_base_patch16_siglip_224", **{**SMALL, "depth": 2})
    with pytest.raises(UsdcoreError, match="tokens can't be left out"):
        stated(model, 2)


# --- beside others


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


# --- how it is written down

SMALL_KWARGS = {key: value for key, value in SMALL.items() if key != "num_classes"}

LOAD = """
import sys, torch, usdcore
model = usdcore.load(sys.argv[1])
torch.save(model(torch.load(sys.argv[2])), sys.argv[3])
"""


def test_it_is_the_same_in_a_new_process(vit: nn.Module, images: torch.Tensor, tmp_path: Path) -> None:
    base = Base(name="vit_tiny_patch16_224", kwargs=SMALL_KWARGS, num_classes=7, input_shape=INPUT)
    budget = Budget("macs", 0.6, batch_size=4)
    session = Session(vit, ONE, budget, Plan(base=base))
    session.begin_phase([make("tome", target=0.8), make("prune")])
    session.end_phase(lambda: iter([images]))
    with torch.no_grad():
        expected = session.model.eval()(images)
    save(session.model, session.plan, tmp_path / "m.safetensors")
    torch.save(images, tmp_path / "images.pt")
    command = [sys.executable, "-c", LOAD, *(str(tmp_path / name) for name in ("m.safetensors", "images.pt", "out.pt"))]
    subprocess.run(command, check=True)
    assert torch.equal(torch.load(tmp_path / "out.pt"), expected)
    again = usdcore.load(tmp_path / "m.safetensors").train()
    again(images).sum().backward()  # and fine-tunes in plain PyTorch


def test_a_record_of_nonsense_is_one_clean_message(vit: nn.Module) -> None:
    config = {"r": 0, "tokens": 17, "prefix": 1, "width": 12, "after": "blocks.0.attn", "proportional": True}
    record = Attach(site=SITES[0], plugin="tome", distribution="usdcore", version="0", config=config)
    with pytest.raises(UsdcoreError, match=r"the plan's gate at blocks\.0\.mlp:tokens can't be built: r: "):
        shrink(vit, Plan(records=(record,)), ONE)


def test_it_goes_on_in_a_later_phase(vit: nn.Module, images: torch.Tensor) -> None:
    tome = make("tome")
    session = session_of(vit, tome, target=0.7)
    session.end_phase(lambda: iter([images]))
    before = [gate.stated for gate in tome.gates.values()]
    session.begin_phase([tome])
    assert [gate.stated for gate in tome.gates.values()] == before
    session.settle(lambda: iter([images]))
    assert [gate.stated for gate in tome.gates.values()] == before


@pytest.mark.parametrize("fused", [True, False], indirect=True, ids=["fused", "unfused"])
def test_it_exports(vit: nn.Module, images: torch.Tensor, fused: bool) -> None:
    model = stated(vit, 3).model
    with torch.no_grad():
        program = torch.export.export(model, (images,))
        other = torch.randn(5, *INPUT, generator=torch.Generator().manual_seed(7))
        assert gap(program.module()(other), model(other)) < 1e-5


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"r": 3, "target": 0.5}, "target is what r is solved for"),
        ({"r": [3, 2], "inflection": 0.5}, "inflection shapes a schedule"),
        ({"r": -1}, "greater than or equal to 0"),
        ({"inflection": 2}, "less than or equal to 1"),
    ],
)
def test_options_that_make_no_sense(options: dict[str, Any], text: str) -> None:
    with pytest.raises(ValueError, match=text):
        make("tome", **options)
