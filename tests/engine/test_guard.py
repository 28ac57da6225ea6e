"""A number that is not finite never reaches a weight: the run goes back once, then says what made it."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from tiny import finished, write_tiny
from zoo import INPUT, KINDS

from usdcore.engine import fit as fitting
from usdcore.engine.data import DataSets
from usdcore.engine.guard import BadNumbers, Guard, NotFinite, Place, gradient_norm
from usdcore.engine.keep import Epochs
from usdcore.engine.log import RunLog
from usdcore.errors import UsdcoreError
from usdcore.gates import Draw, ForwardState, Gate
from usdcore.hooks import registry
from usdcore.recipe import TrainConfig
from usdcore.session import Session
from usdcore.strategy import Attachment, Budget, ParameterGroup, StepContext, Strategy
from usdcore_usdc.dynamic import Dynamic

PLACE = Place("search", 2, 6)
NAN, INF = float("nan"), float("inf")


@pytest.mark.parametrize("bad", [NAN, INF, -INF])
def test_at_once(bad: float) -> None:
    guard = Guard(lag=False)
    guard.loss(torch.tensor(1.0))
    with pytest.raises(NotFinite):
        guard.loss(torch.tensor(bad))
    with pytest.raises(NotFinite):
        guard.gradients(PLACE, {}, torch.tensor(bad))


def test_with_lag_the_next_step_knows() -> None:
    guard = Guard(lag=True)
    terms = {"task": torch.tensor(1.0), "resource": torch.tensor(NAN)}
    guard.loss(terms["resource"])
    guard.gradients(PLACE, terms, torch.tensor(1.0))
    with pytest.raises(BadNumbers, match="phase search, epoch 3, step 7: not finite: resource"):
        guard.gradients(Place("search", 2, 7), {"task": torch.tensor(1.0)}, torch.tensor(1.0))
    guard.settle()
    guard.gradients(PLACE, {"task": torch.tensor(1.0)}, torch.tensor(INF))
    with pytest.raises(BadNumbers, match="the gradients are not finite"):
        guard.settle()


@pytest.mark.parametrize("size", [3, 2**15])
def test_one_bad_entry_shows_in_the_norm(size: int) -> None:
    parameters = [torch.nn.Parameter(torch.zeros(n)) for n in (size, 1, 2)]
    for parameter in parameters[:2]:
        parameter.grad = torch.full_like(parameter, 2.0)
    assert gradient_norm(parameters) == pytest.approx(2 * (size + 1) ** 0.5)
    assert parameters[0].grad is not None
    parameters[0].grad[1] = NAN
    assert not torch.isfinite(gradient_norm(parameters))
    assert gradient_norm([]) == 0


class Half(Gate):
    """Keeps every branch half open by one logit."""

    sites = ("blocks.0.attn", "blocks.1.mlp")

    def __init__(self) -> None:
        super().__init__()
        self.logit = torch.nn.Parameter(torch.zeros(2))

    def draw(self, x_BNC: torch.Tensor | None, state: ForwardState) -> dict[str, Draw]:
        keep = 2 * torch.sigmoid(self.logit)
        return {site: Draw(keep[i]) for i, site in enumerate(self.sites)}


class Evil(Strategy):
    """Does `harm` at the third step."""

    def __init__(self, harm: Callable[[Gate, StepContext], torch.Tensor]) -> None:
        super().__init__(SimpleNamespace(use="evil"))
        self.harm = harm

    def attach(self, site: Attachment) -> None:
        self.gate = Half()
        site.gate("model", self.gate)
        site.param_group(ParameterGroup([self.gate.logit], lr=0.1))

    def losses(self, ctx: StepContext) -> dict[str, torch.Tensor]:
        fine = self.gate.logit.square().sum()
        return {"calm": fine, "wild": self.harm(self.gate, ctx) if ctx.step == 2 else fine}


class Items(torch.utils.data.Dataset[tuple[torch.Tensor, int]]):
    labels = [0, 1] * 8

    def __init__(self, bad: int | None = None) -> None:
        self.images = torch.randn(16, *INPUT, generator=torch.Generator().manual_seed(0))
        if bad is not None:
            self.images[bad, 0, 0, 0] = NAN

    def __len__(self) -> int:
        return 16

    def __getitem__(self, index: int) -> tuple[torch.Tensor, int]:
        return self.images[index], self.labels[index]


class Nobody:
    """Keeps nothing."""

    def begin_epoch(self, fit: fitting.Fit) -> None: ...

    def after_step(self, fit: fitting.Fit) -> None: ...

    def collapsed(self, fit: fitting.Fit, found: list[dict[str, str]]) -> None: ...


def make_fit(model: torch.nn.Module, harm: Any, tmp_path: Path, items: Items, **train: Any) -> fitting.Fit:
    session = Session(model, torch.zeros(1, *INPUT), Budget("macs", 0.9, 4))
    evil = Evil(harm)
    session.begin_phase([evil])
    data = DataSets(items, items, items, 7, 3, "noise", "0")
    config: Any = SimpleNamespace(batch_size=4, workers=0, augment="none")
    around = fitting.Surroundings(
        data, config, 0, torch.device("cpu"), RunLog(tmp_path / "metrics.jsonl"), contextlib.nullcontext
    )
    return fitting.Fit(session, fitting.Stage("search", 1, TrainConfig(lr=1e-3, **train), 0), around, [evil])


def poisoned(gate: Gate, ctx: StepContext) -> torch.Tensor:
    assert isinstance(gate, Half)
    with torch.no_grad():
        gate.logit[1] = NAN
    return gate.logit.square().sum()


HARMS = {
    "loss": (lambda gate, ctx: gate.logit.sum() * NAN, r"the loss term wild of evil is nan"),
    "infinite": (lambda gate, ctx: gate.logit.sum() + INF, r"the loss term wild of evil is inf"),
    "gradient": (
        lambda gate, ctx: (gate.logit * 0).abs().sum().sqrt(),
        r"the gradient of the loss term wild of evil is not finite \(at the gate of evil at model\)",
    ),
    "gate": (poisoned, r"the value of the gate of evil at blocks\.1\.mlp is not finite"),
}


@pytest.mark.parametrize("clip", [None, 1.0])
@pytest.mark.parametrize("harm", HARMS)
def test_the_cause_is_named_and_no_weight_changed(
    vit: torch.nn.Module, tmp_path: Path, harm: str, clip: float | None
) -> None:
    act, words = HARMS[harm]
    fit = make_fit(vit, act, tmp_path, Items(), clip_grad=clip)
    before: dict[str, torch.Tensor] = {}
    real = fit._step

    def step(images: torch.Tensor, target: torch.Tensor) -> dict[str, torch.Tensor]:
        before.update({k: v.clone() for k, v in fit.model.state_dict().items() if "usdcore" not in k})
        return real(images, target)

    fit._step = step  # type: ignore[method-assign]
    with pytest.raises(BadNumbers, match=rf"phase search, epoch 1, step 3: .*{words}"):
        fit.run(Nobody())
    now = fit.model.state_dict()
    assert all(torch.equal(now[name], tensor) for name, tensor in before.items())


def test_bad_images_are_not_blamed_on_the_model(vit: torch.nn.Module, tmp_path: Path) -> None:
    fit = make_fit(vit, lambda gate, ctx: gate.logit.sum(), tmp_path, Items(bad=3))
    with pytest.raises(BadNumbers, match="the images of this step hold values that are not finite"):
        fit.run(Nobody())


def _worst(strategy: Any) -> torch.nn.Parameter:
    """A weight of the gate of the last block that has one."""
    *_, gate = (gate for gate in strategy.gates.values() if list(gate.parameters()))
    *_, weight = gate.parameters()
    return weight


@pytest.mark.parametrize(
    ("name", "options", "words"),
    [
        (
            "dynamicvit",
            {"keep_ratio": 0.5, "frozen_epochs": 0},
            "the value of the gate of dynamicvit at blocks.2:tokens",
        ),
        ("adavit", {"target": 0.8}, "the value of the gate of adavit at blocks.2:tokens"),
        ("usdc-dynamic", {"gate_network": "G1"}, "the value of the gate of usdc-dynamic at blocks.2.attn"),
        ("usdc-static", {}, "the value of the gate of usdc-static at blocks."),
        ("uvc", {"skip": "block"}, "the value of the gate of uvc at blocks.0 is"),
    ],
)
def test_every_gate_is_named_with_its_site(
    vit: torch.nn.Module, tmp_path: Path, name: str, options: dict[str, Any], words: str
) -> None:
    """Tokens, heads, branches and whole blocks: one weight of a gate goes bad after the second step."""
    session = Session(vit, torch.zeros(1, *INPUT), Budget("macs", 0.8, 4, "sample"))
    config = registry().config("strategy", name).model_validate({"use": name, **options})
    strategy = registry().load("strategy", name)(config)
    session.begin_phase([strategy])
    items, shape = Items(), SimpleNamespace(batch_size=4, workers=0, augment="none")
    around = fitting.Surroundings(
        DataSets(items, items, items, 7, 3, "noise", "0"),
        shape,  # type: ignore[arg-type]
        0,
        torch.device("cpu"),
        RunLog(tmp_path / "metrics.jsonl"),
        contextlib.nullcontext,
    )
    session.load_dense = lambda: KINDS["vit"]()
    fit = fitting.Fit(session, fitting.Stage("search", 2, TrainConfig(lr=1e-3), 0), around, [strategy])

    class Poison(Nobody):
        def after_step(self, fit: fitting.Fit) -> None:
            if fit.state.step == 2:
                with torch.no_grad():
                    _worst(strategy).fill_(NAN)

    with pytest.raises(BadNumbers, match=r"phase search, epoch 1, step 3: ") as caught:
        fit.run(Poison())
    assert words in str(caught.value)


def test_bad_weights_are_named(vit: torch.nn.Module, tmp_path: Path) -> None:
    fit = make_fit(vit, lambda gate, ctx: gate.logit.sum(), tmp_path, Items())
    with torch.no_grad():
        fit.model.blocks[1].mlp.fc1.weight[0, 0] = INF
    with pytest.raises(BadNumbers, match=r"the weights blocks\.1\.mlp\.fc1\.weight are not finite"):
        fit.run(Nobody())


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    return write_tiny(tmp_path)


def spoil(monkeypatch: pytest.MonkeyPatch, when: Callable[[StepContext], bool]) -> None:
    real = Dynamic.losses

    def losses(self: Dynamic, ctx: StepContext) -> dict[str, torch.Tensor]:
        terms = real(self, ctx)
        return {name: term * NAN if name == "information" and when(ctx) else term for name, term in terms.items()}

    monkeypatch.setattr(Dynamic, "losses", losses)


def test_a_run_recovers_alike_however_often_it_is_broken_off(
    recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At a late step of the search's second epoch, after the networks were chosen, and only at the full rate."""
    spoil(monkeypatch, lambda ctx: ctx.step == 18 and ctx.num_steps == 22 and ctx.lr is not None and ctx.lr > 1.5e-3)
    whole = finished(recipe, tmp_path / "whole", "checkpoint.seconds=1000")
    (warning,) = (one["text"] for one in whole["warnings"] if "half" in one["text"])
    assert "phase search, epoch 2, step 8: the loss term information of usdc-dynamic is nan" in warning
    real, written = Epochs.write, 0

    def write(self: Epochs, fit: fitting.Fit) -> None:
        nonlocal written
        real(self, fit)
        written += 1
        if written in (29, 36):  # before the bad step, and after going back
            raise KeyboardInterrupt

    monkeypatch.setattr(Epochs, "write", write)
    for _ in range(2):
        with pytest.raises(KeyboardInterrupt):
            finished(recipe, tmp_path / "broken")
    broken = finished(recipe, tmp_path / "broken")
    same = [(tmp_path / name / "model.safetensors").read_bytes() for name in ("whole", "broken")]
    assert same[0] == same[1]
    assert broken["warnings"] == whole["warnings"]
    assert not list((tmp_path / "broken" / "checkpoints").glob("epoch-*"))


def test_bad_again_ends_the_run_and_keeps_what_was_good(
    recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spoil(monkeypatch, lambda ctx: ctx.step == 14)
    words = r"phase search, epoch 2, step 4: the loss term information of usdc-dynamic is nan; .*half the learning rate"
    with pytest.raises(UsdcoreError, match=words):
        finished(recipe, tmp_path / "run")
    monkeypatch.undo()
    assert finished(recipe, tmp_path / "run")["compressed"]["top1"] > 0


def test_weights_that_the_last_step_broke(vit: torch.nn.Module, tmp_path: Path) -> None:
    fit = make_fit(vit, lambda gate, ctx: gate.logit.sum(), tmp_path, Items())
    real = fit.session.after_step

    def after_step() -> None:
        real()
        if fit.state.step == 3:
            with torch.no_grad():
                fit.model.blocks[0].mlp.fc2.bias[0] = INF

    fit.session.after_step = after_step  # type: ignore[method-assign]
    with pytest.raises(BadNumbers, match=r"step 4: the weights blocks\.0\.mlp\.fc2\.bias are not finite after it"):
        fit.run(Nobody())
