"""Distillation from outside: exact losses, who learns from what, the distillation token, others beside it."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
import torch.nn.functional as F
from distilling import DISTILLED, TARGET, make, model_of, session_of, step, timm_teacher
from timm.utils import ModelEmaV3
from torch import nn
from zoo import INPUT, SMALL, gap, randomise

import usdcore
from usdcore.artifact import save
from usdcore.errors import UsdcoreError
from usdcore.plans import Base, Plan
from usdcore.session import Session
from usdcore.strategy import Budget
from usdcore.teachers import primary
from usdcore_distill import losses

# --- the losses


@pytest.fixture
def logits() -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    student, teacher = (3 * torch.randn(4, 7, generator=generator, dtype=torch.float64) for _ in range(2))
    return student, teacher


@pytest.mark.parametrize("tau", [1.0, 3.0])
def test_soft_is_the_divergence_of_the_probabilities(logits: tuple[torch.Tensor, torch.Tensor], tau: float) -> None:
    student, teacher = logits
    p, q = torch.softmax(teacher / tau, 1), torch.softmax(student / tau, 1)
    divergence = tau**2 * (p * (p / q).log()).sum()
    torch.testing.assert_close(losses.soft(student, teacher, tau), divergence / 4, rtol=1e-12, atol=0)
    per_class = losses.soft(student, teacher, tau, "batch_classes")
    torch.testing.assert_close(per_class, divergence / (4 * 7), rtol=1e-12, atol=0)


def test_hard_is_the_cross_entropy_to_the_first_choice(logits: tuple[torch.Tensor, torch.Tensor]) -> None:
    student, teacher = logits
    q = torch.softmax(student, 1)
    expected = -torch.stack([q[row, teacher[row].argmax()].log() for row in range(4)]).mean()
    torch.testing.assert_close(losses.hard(student, teacher), expected, rtol=1e-12, atol=0)


def test_features_are_compared_by_their_correlation() -> None:
    generator = torch.Generator().manual_seed(0)
    a, b = (torch.randn(2, 3, 64, generator=generator, dtype=torch.float64) for _ in range(2))
    correlations = [torch.corrcoef(torch.stack([a[i, j], b[i, j]]))[0, 1] for i in range(2) for j in range(3)]
    expected = 2 * (1 - torch.stack(correlations).mean())
    torch.testing.assert_close(losses.feature_gap(a, b), expected, rtol=1e-4, atol=0)  # but for layer norm's epsilon
    assert float(losses.feature_gap(a, 5 * a + 1)) < 1e-8


def test_low_precision_is_computed_in_float32(logits: tuple[torch.Tensor, torch.Tensor]) -> None:
    student, teacher = (x.bfloat16() for x in logits)
    for loss in (
        losses.soft(student, teacher, 2.0),
        losses.hard(student, teacher),
        losses.feature_gap(student, teacher),
    ):
        assert loss.dtype == torch.float32
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = losses.soft(student, teacher, 2.0)
    torch.testing.assert_close(found, losses.soft(student.float(), teacher.float(), 2.0), rtol=1e-6, atol=0)


# --- a step


@pytest.mark.parametrize(
    ("options", "alpha"),
    [({}, 0.1), ({"kind": "hard", "alpha": 0.5}, 0.5), ({"tau": 4.0, "reduction": "batch_classes"}, 0.1)],
)
def test_the_terms_of_a_step(vit: nn.Module, images: torch.Tensor, options: dict[str, Any], alpha: float) -> None:
    session = session_of(vit, make(**options))
    with torch.no_grad():
        taught = vit(images)
    randomise(vit, seed=5)
    terms = step(session, images)
    student = vit(images)
    expected = (
        losses.hard(student, taught)
        if options.get("kind") == "hard"
        else losses.soft(student, taught, options.get("tau", 1.0), options.get("reduction", "batchmean"))
    )
    assert set(terms) == {"distill"}
    torch.testing.assert_close(terms["distill"], alpha * expected)
    assert session.task_weight == 1 - alpha


def test_one_images_teacher_is_not_that_of_another(vit: nn.Module, images: torch.Tensor) -> None:
    """A student equal to its teacher has nothing to learn, in every step."""
    session = session_of(vit, make(features={}))
    for number, batch in enumerate((images, images.flip(0), images * 2)):
        assert max(float(term.detach()) for term in step(session, batch, number).values()) < 1e-6


def test_without_images_it_says_what_to_do(vit: nn.Module, images: torch.Tensor) -> None:
    session = session_of(vit, make())
    session.begin_step(0, 10)
    with pytest.raises(UsdcoreError, match=r"call session\.begin_step\(\.\.\., images=images\)"):
        session.losses(vit.train()(images), TARGET)


def test_alone_it_trains_and_ends_a_phase(vit: nn.Module, images: torch.Tensor) -> None:
    """No gates at all: nothing is decided, nothing is shrunk, nothing is left on the model."""
    session = session_of(vit, make(alpha=1.0, features={}))
    randomise(vit, seed=5)
    optimizer = torch.optim.Adam(session.model.parameters(), lr=1e-3)
    totals = []
    for number in range(20):
        session.begin_step(number, 20, images=images)
        output = session.model.train()(images)
        loss = session.task_weight * F.cross_entropy(primary(output), TARGET) + session.loss(output, TARGET)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        totals.append(float(loss.detach()))
    assert totals[-1] < 0.7 * totals[0]
    trained = {name: tensor.clone() for name, tensor in session.model.state_dict().items()}
    end = session.end_phase(lambda: iter([images]))
    assert (end.projection, end.searched) == (None, None)
    assert session.calibrate(lambda: iter([images])) is None
    session.settle(lambda: iter([images]))
    assert not session.plan.records
    assert all(torch.equal(tensor, trained[name]) for name, tensor in session.model.state_dict().items())
    assert not [module for module in session.model.modules() if module._forward_hooks]


@pytest.mark.parametrize("cached", [True, False])
def test_under_autocast(vit: nn.Module, images: torch.Tensor, tmp_path: Path, cached: bool) -> None:
    stated = timm_teacher(tmp_path / "t.safetensors", embed_dim=96)
    session = session_of(vit, make(teacher=stated, cache=cached, features=None if cached else {}))
    exact = [float(term.detach()) for term in step(session, images, 0, torch.arange(5) + 50).values()]
    for number in range(2):
        with torch.autocast("cpu", dtype=torch.bfloat16):
            terms = step(session, images, number, torch.arange(5))
        assert all(term.dtype == torch.float32 for term in terms.values())
        assert [float(term.detach()) for term in terms.values()] == pytest.approx(exact, rel=0.05)
        sum(terms.values()).backward()


# --- the distillation token


@pytest.fixture
def distilled() -> nn.Module:
    return model_of(DISTILLED)


def test_the_task_trains_one_token_and_the_teacher_the_other(distilled: nn.Module, images: torch.Tensor) -> None:
    session = session_of(distilled, make())
    heads = [distilled.head.weight, distilled.head_dist.weight]
    session.begin_step(0, 10, images=images)
    output = distilled.train()(images)
    kd = session.losses(output, TARGET)["distill"]
    task = F.cross_entropy(primary(output), TARGET)
    for loss, learns in ((task, [True, False]), (kd, [False, True])):
        gradients = torch.autograd.grad(loss, heads, retain_graph=True, allow_unused=True)
        assert [g is not None and float(g.abs().sum()) > 0 for g in gradients] == learns
    taught = distilled.eval()(images)
    torch.testing.assert_close(kd, 0.1 * losses.soft(output[1], taught, 1.0))
    torch.testing.assert_close(taught, (output[0] + output[1]) / 2)


def test_the_class_token_alone_leaves_the_model_as_timm_has_it(distilled: nn.Module, images: torch.Tensor) -> None:
    session = session_of(distilled, make(token="class"))
    session.begin_step(0, 10, images=images)
    output = distilled.train()(images)
    assert isinstance(output, torch.Tensor)
    torch.testing.assert_close(session.losses(output, TARGET)["distill"], torch.zeros(()), atol=1e-6, rtol=0)


@pytest.mark.parametrize("was", [False, True])
def test_the_host_is_left_as_it_was(distilled: nn.Module, images: torch.Tensor, was: bool) -> None:
    distilled.set_distilled_training(was)
    session = session_of(distilled, make())
    assert distilled.distilled_training
    session.end_phase(lambda: iter([images]))
    assert session.model.distilled_training is was
    session.begin_phase([make()])
    session.begin_phase([])
    assert session.model.distilled_training is was


def test_a_phase_that_can_not_begin_leaves_the_host_as_it_was(distilled: nn.Module) -> None:
    with pytest.raises(UsdcoreError, match="no module named 'block'"):
        session_of(distilled, make(), make(features={"layers": ["block"]}))
    assert distilled.distilled_training is False


def test_a_saved_student_is_timms_default(distilled: nn.Module, images: torch.Tensor, tmp_path: Path) -> None:
    name, kwargs = DISTILLED, {k: v for k, v in SMALL.items() if k != "num_classes"}
    plan = Plan(base=Base(name=name, kwargs=kwargs, num_classes=7, input_shape=INPUT))
    session = Session(distilled, torch.zeros(1, *INPUT), Budget("macs", 1.0, batch_size=5), plan)
    session.begin_phase([make(features={})])
    step(session, images)
    save(session.model, session.plan, tmp_path / "m.safetensors")
    assert set(session.model.state_dict()) == set(timm.create_model(name, **SMALL).state_dict())
    loaded = usdcore.load(tmp_path / "m.safetensors")
    assert isinstance(loaded.train()(images), torch.Tensor)


def test_no_token_no_distillation_through_it(vit: nn.Module) -> None:
    with pytest.raises(UsdcoreError, match=r"VisionTransformer has no distillation token: use token: auto, or a model"):
        session_of(vit, make(token="distillation"))


def test_a_model_in_evaluation_gives_no_token(distilled: nn.Module, images: torch.Tensor) -> None:
    session = session_of(distilled, make())
    session.begin_step(0, 10, images=images)
    with pytest.raises(UsdcoreError, match=r"call model\.train\(\)"):
        session.losses(distilled.eval()(images), TARGET)


# --- with others


def test_with_both_halves_of_usdc_then_on_the_shrunk_model(vit: nn.Module, images: torch.Tensor) -> None:
    distill, dynamic = make(features={}), make("usdc-dynamic", gate_network="G2")
    session = session_of(vit, make("usdc-static", lr=0.05), dynamic, distill, target=0.6)
    dense = copy.deepcopy(session.teachers["dense"].model)
    groups = [{"params": g.parameters, "lr": g.lr} for g in session.parameter_groups if g.parameters]
    optimizer = torch.optim.Adam(groups)
    for number in range(30):
        terms = step(session, images, number)
        assert set(terms) == {"resource", "distill", "distill_features"}
        optimizer.zero_grad()
        sum(terms.values()).backward()
        optimizer.step()
    session.end_phase(lambda: iter([images]))
    assert sum(p.numel() for p in session.model.parameters()) < sum(p.numel() for p in dense.parameters())
    session.begin_phase([dynamic, distill])
    terms = step(session, images)
    with torch.no_grad():
        assert gap(session.teachers["dense"].model(images), dense(images)) == 0
    assert float(terms["distill"].detach()) > 0
    assert not [name for name in session.model.state_dict() if "teacher" in name]


def test_layers_keep_their_numbers_when_one_is_gone(vit: nn.Module, images: torch.Tensor) -> None:
    from usdcore.plans import Drop
    from usdcore.surgery import shrink

    plan = Plan(records=(Drop(branch="blocks.1.attn"), Drop(branch="blocks.1.mlp")))
    small = shrink(vit, plan, torch.zeros(1, *INPUT))
    distill = make(features={"layers": [2]})
    terms = step(session_of(small, distill), images)
    assert [pair.student.module for pair in distill._features.pairs] == ["blocks.2"]  # type: ignore[attr-defined]
    assert float(terms["distill_features"].detach()) < 1e-6


def test_averaged_weights_do_not_disturb(distilled: nn.Module, images: torch.Tensor) -> None:
    session = session_of(distilled, make(features={}), make("usdc-dynamic", gate_network="G1"))
    step(session, images)
    ema = ModelEmaV3(session.model, decay=0.5)
    session.begin_step(1, 10, images=images)
    torch.manual_seed(0)
    output = session.model(images)
    ema.module(images * 3)
    ema.update(session.model)
    with_copy = session.losses(output, TARGET)
    session.begin_step(1, 10, images=images)
    torch.manual_seed(0)
    without = session.losses(session.model(images), TARGET)
    assert all(torch.equal(with_copy[name], without[name]) for name in without)
