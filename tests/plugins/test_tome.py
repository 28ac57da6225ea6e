"""`tome` in a model: what it computes, what it costs and how it is written down."""

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
from merging import ONE, SITES, SMALL_KWARGS, executed, make, session_of, stated
from timm.layers import set_fused_attn
from torch import nn
from zoo import INPUT, KINDS, SMALL, gap, randomise

import usdcore
from usdcore.artifact import save
from usdcore.costs import Tree
from usdcore.errors import UsdcoreError
from usdcore.plans import Attach, Base, Plan
from usdcore.session import Session
from usdcore.strategy import Budget
from usdcore.surgery import shrink
from usdcore_tome.following import sources

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


# --- how it is written down


LOAD = """
import sys, torch, usdcore
model = usdcore.load(sys.argv[1])
torch.save(model(torch.load(sys.argv[2], weights_only=True)), sys.argv[3])
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
    assert torch.equal(torch.load(tmp_path / "out.pt", weights_only=True), expected)
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
