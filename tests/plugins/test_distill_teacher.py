"""The teacher: one, frozen, that fits; what it shows inside; and what is kept of it."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
import torch.nn.functional as F
from distilling import DISTILLED, VIT, make, model_of, session_of, step, timm_teacher, weights_of
from torch import nn
from zoo import INPUT, SMALL, randomise

from usdcore.artifact import save
from usdcore.errors import UsdcoreError
from usdcore.plans import Base, Plan
from usdcore.session import Session
from usdcore.strategy import Budget
from usdcore_distill import cache, losses


@pytest.fixture
def forwards(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The batch size of every forward of a teacher in a step."""
    from usdcore.teachers import Teacher

    seen: list[int] = []
    real = Teacher.__init__

    def init(self: Teacher, model: nn.Module) -> None:
        real(self, model)
        model.register_forward_pre_hook(lambda _, args: seen.append(len(args[0])))

    monkeypatch.setattr(Teacher, "__init__", init)
    return seen


# --- the teacher


def test_a_teacher_is_frozen_shared_and_runs_once_a_step(
    vit: nn.Module, images: torch.Tensor, tmp_path: Path, forwards: list[int]
) -> None:
    config = type(make().config).__mro__[1]
    stated = timm_teacher(tmp_path / "t.safetensors")
    first = make(teacher=stated, features={})
    second = type(first)(config.model_validate({"use": "other", "teacher": stated, "kind": "hard"}))
    names = set(vit.state_dict())
    session = session_of(vit, first, second)
    (teacher,) = session.teachers.values()
    before = copy.deepcopy(teacher.model.state_dict())
    forwards.clear()
    optimizer = torch.optim.SGD(vit.parameters(), lr=0.1)
    for number in range(3):
        terms = step(session, images, number)
        assert set(terms) == {"distill", "distill_features", "other"}
        sum(terms.values()).backward()
        optimizer.step()
    assert forwards == [5, 5, 5]
    assert session.task_weight == pytest.approx(0.81)
    session.end_phase(lambda: iter([images]))
    session.begin_phase([first])
    step(session, images)
    assert list(session.teachers.values()) == [teacher]
    assert forwards[-1] == 5
    assert set(forwards[3:-1]) == {1}  # blank images, to see what it gives
    assert set(session.model.state_dict()) == names
    assert first.state_dict() == {"cache": {}, "projections": {}}
    assert not teacher.model.training
    assert not any(p.requires_grad or p.grad is not None for p in teacher.model.parameters())
    assert all(torch.equal(tensor, before[name]) for name, tensor in teacher.model.state_dict().items())


def test_a_timm_teacher_of_another_architecture(vit: nn.Module, images: torch.Tensor, tmp_path: Path) -> None:
    cnn = timm.create_model("regnety_002", num_classes=7)
    teacher = {"model": "regnety_002", "weights": weights_of(cnn, tmp_path / "t.safetensors")}
    terms = step(session_of(vit, make(teacher=teacher)), images)
    with torch.no_grad():
        expected = 0.1 * losses.soft(vit(images), cnn.eval()(images), 1.0)
    torch.testing.assert_close(terms["distill"], expected)


def test_a_model_that_usdcore_saved_can_teach(vit: nn.Module, images: torch.Tensor, tmp_path: Path) -> None:
    """Its own gates included."""
    kwargs = {key: value for key, value in SMALL.items() if key != "num_classes"}
    plan = Plan(base=Base(name=VIT, kwargs=kwargs, num_classes=7, input_shape=INPUT))
    session = Session(vit, torch.zeros(1, *INPUT), Budget("macs", 0.7, batch_size=5), plan)
    session.begin_phase([make("usdc-static"), make("usdc-dynamic", gate_network="G1")])
    session.end_phase(lambda: iter([images]))
    save(session.model, session.plan, tmp_path / "m.safetensors")
    student = model_of(seed=3)
    terms = step(session_of(student, make(teacher={"file": str(tmp_path / "m.safetensors")})), images)
    with torch.no_grad():
        expected = 0.1 * losses.soft(student(images), session.model.eval()(images), 1.0)
    torch.testing.assert_close(terms["distill"], expected)


def test_making_a_teacher_does_not_change_what_is_drawn(tmp_path: Path) -> None:
    stated = timm_teacher(tmp_path / "t.safetensors", embed_dim=24)
    drawn = []
    for strategies in ((), (make(teacher=stated, features={}),)):
        torch.manual_seed(0)
        session_of(model_of(), *strategies)
        drawn.append(torch.rand(1))
    torch.manual_seed(0)
    model_of()
    assert drawn == [torch.rand(1)] * 2


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"num_classes": 5},
            r"has 5 logits, the model that learns from it has 7 logits: they must know the same classes",
        ),
        ({"in_chans": 1}, r"can't take this run's images of \[3, 32, 32\] .* made for \[3, 224, 224\] unless kwargs"),
        ({"img_size": 64}, r"can't take this run's images of \[3, 32, 32\] .*Input height \(32\)"),
        ({"patch_size": 4}, ""),
    ],
)
def test_a_teacher_that_does_not_fit_is_refused_at_once(
    vit: nn.Module, tmp_path: Path, options: dict[str, Any], message: str
) -> None:
    stated = timm_teacher(tmp_path / "t.safetensors", **options)
    stated["kwargs"].pop("in_chans", None)  # the weights say it
    if message:
        with pytest.raises(UsdcoreError, match=rf"distill\.teacher: {VIT} {message}"):
            session_of(vit, make(teacher=stated))
    else:
        session_of(vit, make(teacher=stated))


@pytest.mark.parametrize(
    ("teacher", "message"),
    [
        (
            {"model": "vit_tiny_patch16_225", "weights": "w"},
            "timm has no model named .* did you mean 'vit_tiny_patch16_",
        ),
        (
            {"model": "regnety_160.deit", "pretrained": True},
            "timm has no weights .* did you mean 'regnety_160.deit_in1k'",
        ),
        ({"model": VIT, "weights": "gone.pt"}, r"distill\.teacher\.weights: gone\.pt: no such file"),
        ({"file": "gone.safetensors"}, r"distill\.teacher\.file: gone\.safetensors: no such file"),
        ({"model": VIT, "pretrained": True, "kwargs": {"depths": 3}}, "timm can't make vit_tiny_patch16_224 .*depths"),
        ({"model": VIT, "pretrained": True}, "has 1000 logits, .* has 7 logits"),
    ],
)
def test_a_teacher_that_can_not_be_made(vit: nn.Module, teacher: dict[str, Any], message: str) -> None:
    """In a dry run, which fetches nothing."""
    session = Session(vit, torch.zeros(1, 3, 32, 32), Budget("macs", 1.0, batch_size=5))
    session.is_dry = True
    if "1000" in message:
        teacher = {**teacher, "kwargs": {"img_size": 32}}
    with pytest.raises(UsdcoreError, match=message):
        session.begin_phase([make(teacher=teacher)])


def test_weights_of_another_model_say_what_does_not_fit(vit: nn.Module, tmp_path: Path) -> None:
    stated = timm_teacher(tmp_path / "t.safetensors")
    stated["kwargs"]["depth"] = 4
    with pytest.raises(UsdcoreError, match=r"t\.safetensors, for vit_tiny_.* can't be used: Missing key.*blocks\.3\."):
        session_of(vit, make(teacher=stated))


def test_the_dense_model_is_gone_after_a_phase_that_shrank_it(vit: nn.Module, images: torch.Tensor) -> None:
    session = session_of(vit, make("usdc-static"), target=0.7)
    session.end_phase(lambda: iter([images]))
    with pytest.raises(UsdcoreError, match=r"the dense model is gone: name the strategy .* in the first phase"):
        session.begin_phase([make()])


# --- features


def widths_of(session: Session) -> list[tuple[int, ...]]:
    return [tuple(p.shape) for group in session.parameter_groups for p in group.parameters]


def test_features_of_a_wider_and_deeper_teacher(vit: nn.Module, images: torch.Tensor, tmp_path: Path) -> None:
    stated = timm_teacher(tmp_path / "t.safetensors", depth=6, embed_dim=96)
    distill = make(teacher=stated, kind="features", alpha=0.5, features={"weight": 2.0, "lr": 0.01})
    session = session_of(vit, distill)
    assert widths_of(session) == [(96, 48), (96,)] * 2
    assert [group.lr for group in session.parameter_groups] == [0.01]
    terms = step(session, images)
    (maps,) = (group.parameters for group in session.parameter_groups)
    teacher, seen, taught = model_of(seed=1, depth=6, embed_dim=96), {}, {}
    for model, into in ((vit, seen), (teacher, taught)):
        for number, block in enumerate(model.blocks):
            block.register_forward_hook(lambda m, a, out, into=into, number=number: into.update({number: out}))
        model(images)
    pairs = [(1, 3), (2, 5)]  # the middle and the last of the student, at the teacher's same depths
    gaps = [
        losses.feature_gap(F.linear(seen[own], maps[2 * i], maps[2 * i + 1]), taught[other])
        for i, (own, other) in enumerate(pairs)
    ]
    assert set(terms) == {"distill_features"}
    torch.testing.assert_close(terms["distill_features"], 0.5 * 2.0 * (gaps[0] + gaps[1]) / 2)
    terms["distill_features"].backward()
    assert all(float(p.grad.abs().sum()) > 0 for p in [*maps, vit.blocks[0].attn.qkv.weight])


@pytest.mark.parametrize(
    ("layers", "pairs"),
    [
        ([0, -1], [("blocks.0", "blocks.0"), ("blocks.2", "blocks.2")]),
        (["norm", {"student": 1, "teacher": "blocks.2.mlp"}], [("norm", "norm"), ("blocks.1", "blocks.2.mlp")]),
        (None, [("blocks.1", "blocks.1"), ("blocks.2", "blocks.2")]),
    ],
)
def test_layers_by_number_and_by_name(vit: nn.Module, layers: Any, pairs: list[tuple[str, str]]) -> None:
    distill = make(features={"layers": layers})
    session_of(vit, distill)
    assert [(pair.student.module, pair.teacher.module) for pair in distill._features.pairs] == pairs  # type: ignore[attr-defined]


def test_a_distillation_token_more_is_left_out(images: torch.Tensor, tmp_path: Path) -> None:
    distilled = model_of(DISTILLED)
    session = session_of(distilled, make(teacher=timm_teacher(tmp_path / "t.safetensors"), features={"layers": [-1]}))
    terms = step(session, images)
    seen = []
    for model in (distilled, model_of(seed=1)):
        model.blocks[2].register_forward_hook(lambda m, a, out: seen.append(out))
        model(images)
    torch.testing.assert_close(terms["distill_features"], 0.1 * losses.feature_gap(seen[0][:, 2:], seen[1][:, 1:]))


@pytest.mark.parametrize(
    ("teacher", "features", "message"),
    [
        ({}, {"layers": ["blocks.7"]}, "VisionTransformer has no module named 'blocks.7' to watch: did you mean"),
        ({}, {"layers": [3]}, r"the student has 3 layers \(0 to 2\), so there is no 3"),
        ({"patch_size": 4}, {}, "the student's blocks.1 gives 17 tokens, 1 of them .* the teacher's blocks.1 65 and 1"),
        ({}, {"layers": ["head"]}, r"the student's head gives \[7\] per image, not tokens"),
        ({}, {"layers": [{"student": 0, "teacher": "patch_embed.proj"}]}, r"patch_embed\.proj gives \[48, 4, 4\] per"),
        ({}, {"layers": ["blocks"]}, ""),
    ],
)
def test_features_that_do_not_correspond(
    vit: nn.Module, tmp_path: Path, teacher: dict[str, Any], features: dict[str, Any], message: str
) -> None:
    strategy = make(teacher=timm_teacher(tmp_path / "t.safetensors", **teacher), features=features)
    if not message:
        session_of(vit, strategy)
        return
    with pytest.raises(UsdcoreError, match=message):
        session_of(vit, strategy)


# --- the cache


def test_the_teacher_runs_once_an_image(vit: nn.Module, images: torch.Tensor, forwards: list[int]) -> None:
    session = session_of(vit, make(cache=True))
    randomise(vit, seed=5)
    ids, more = torch.tensor([4, 0, 9, 2, 7]), torch.randn(5, *INPUT)
    first = step(session, images, 0, ids)["distill"]
    turned = torch.tensor([2, 0, 1, 4, 3])
    again = step(session, images[turned], 1, ids[turned])["distill"]
    assert forwards == [5]
    torch.testing.assert_close(again, first)
    step(session, more, 2, torch.tensor([20, 21, 22, 23, 24]))
    step(session, torch.cat([images[:2], more[:3]]), 3, torch.tensor([4, 0, 20, 21, 22]))
    assert forwards == [5, 5]
    step(session, images, 4, torch.tensor([4, 0, 9, 2, 8]))
    assert forwards == [5, 5, 5]


def test_a_cache_goes_on_from_a_checkpoint(vit: nn.Module, images: torch.Tensor, forwards: list[int]) -> None:
    strategy, ids = make(cache=True), torch.arange(5)
    dense = copy.deepcopy(vit)
    session = session_of(vit, strategy)
    randomise(vit, seed=5)
    expected = step(session, images, 0, ids)["distill"]
    for before in (True, False):  # the engine restores before and after attach
        new = make(cache=True)
        if before:
            new.load_state_dict(strategy.state_dict())
        other = session_of(copy.deepcopy(dense), new)
        if not before:
            new.load_state_dict(strategy.state_dict())
        randomise(other.model, seed=5)
        assert torch.equal(step(other, images, 0, ids)["distill"], expected)
    assert forwards == [5]


def test_what_changes_can_not_be_kept(vit: nn.Module, images: torch.Tensor) -> None:
    with pytest.raises(UsdcoreError, match=r"distill\.cache: these images change .*data\.augment, train\.mixup"):
        step(session_of(vit, make(cache=True)), images)
    with pytest.raises(UsdcoreError, match=r"distill\.cache: 3 ids for 5 images"):
        step(session_of(vit, make(cache=True)), images, 0, torch.arange(3))


def test_the_cache_is_bounded(vit: nn.Module, images: torch.Tensor, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cache, "LIMIT", 1000)
    session = session_of(vit, make(cache=True))
    step(session, images, 0, torch.arange(5))
    with pytest.raises(UsdcoreError, match=r"logits of 7 classes for 41 images and more .* set cache: false"):
        step(session, images, 1, torch.tensor([40, 1, 2, 3, 4]))
