"""`train.compile`: a phase's steps are compiled, and nothing else of a run changes."""

from __future__ import annotations

import contextlib
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from compiling import DYNAMIC, STATIC, no_compiler, no_traces, require_close, session_of, small
from tiny import write_tiny
from zoo import INPUT

from usdcore.compiled import CompiledForward
from usdcore.engine.data import DataSets
from usdcore.engine.fit import Fit, Stage, Surroundings
from usdcore.engine.guard import BadNumbers
from usdcore.engine.log import SilentLog
from usdcore.engine.pipeline import run
from usdcore.recipe import RecipeError, TrainConfig, load_recipe, recipe_sha256
from usdcore.strategy import StepContext, Strategy

EAGER = {"backend": "aot_eager"}


pytestmark = pytest.mark.usefixtures(no_traces.__name__)


class Items(torch.utils.data.Dataset[tuple[torch.Tensor, int]]):
    def __len__(self) -> int:
        return 16

    def __getitem__(self, index: int) -> tuple[torch.Tensor, int]:
        return torch.randn(INPUT, generator=torch.Generator().manual_seed(index)), index % 7


class Nobody:
    """Keeps nothing."""

    def begin_epoch(self, fit: Fit) -> None: ...

    def after_step(self, fit: Fit) -> None: ...

    def collapsed(self, fit: Fit, found: list[dict[str, str]]) -> None: ...


class Steep(Strategy):
    """A loss whose value is fine at the third step, and its gradient is not."""

    def __init__(self) -> None:
        super().__init__(SimpleNamespace(use="steep"))

    def losses(self, ctx: StepContext) -> dict[str, torch.Tensor]:
        assert ctx.output is not None
        return {"wild": (ctx.output * 0).abs().sum().sqrt() if ctx.step == 2 else ctx.output.square().mean()}


class Log(SilentLog):
    """Keeps the lines for people."""

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self.said: list[str] = []

    def say(self, text: str) -> None:
        self.said.append(text)


class Stopped(Exception):
    """In the middle of an epoch."""


class StopsAt(Nobody):
    def __init__(self, step: int) -> None:
        self.step = step

    def after_step(self, fit: Fit) -> None:
        if fit.state.step == self.step:
            raise Stopped


def fit_of(path: Path, strategies: list[Any], **train: Any) -> Fit:
    torch.manual_seed(1)
    session = session_of(small(1), strategies)
    items, config = Items(), SimpleNamespace(batch_size=4, workers=0, augment="none")
    around = Surroundings(
        DataSets(items, items, items, 7, 3, "noise", "0"),
        config,  # type: ignore[arg-type]
        0,
        torch.device("cpu"),
        Log(path / "metrics.jsonl"),
        contextlib.nullcontext,
    )
    options = TrainConfig.model_validate({"lr": 1e-3, "mixup": 0.2, "clip_grad": 1.0, "ema": 0.9, **train})
    return Fit(session, Stage("search", 1, options, 0), around, session.strategies)


def weights(fit: Fit) -> dict[str, torch.Tensor]:
    assert fit.ema is not None
    return fit.model.state_dict() | {f"averaged.{name}": t for name, t in fit.ema.module.state_dict().items()}


def lines(fit: Fit) -> list[str]:
    assert isinstance(fit.around.log, Log)
    return fit.around.log.said


def test_a_stage_is_the_plain_one_and_goes_on_to_the_same_bits(tmp_path: Path) -> None:
    """Averaged weights, mixup and clipping beside gates; broken off after two of four steps."""
    strategies = [STATIC, DYNAMIC]
    plain = fit_of(tmp_path, strategies)
    plain.run(Nobody())
    whole = fit_of(tmp_path, strategies, compile=EAGER)
    whole.run(Nobody())
    assert [line.partition(" in ")[0] for line in lines(whole)] == ["search: forward compiled"]
    require_close(weights(whole), weights(plain))
    assert list(whole.model.state_dict()) == list(plain.model.state_dict())
    broken = fit_of(tmp_path, strategies, compile=EAGER)
    with pytest.raises(Stopped):
        broken.run(StopsAt(2))
    state = broken.state_dict()
    resumed = fit_of(tmp_path, strategies, compile=EAGER)
    resumed.load_state_dict(state)
    resumed.run(Nobody())
    found, wanted = weights(resumed), weights(whole)
    assert all(torch.equal(found[name], tensor) for name, tensor in wanted.items())


def test_the_cause_of_bad_numbers_is_found(tmp_path: Path) -> None:
    """Which asks for the gradient of each loss term by itself."""
    fit = fit_of(tmp_path, [], compile=EAGER)
    fit.session.begin_phase([Steep()])
    with pytest.raises(BadNumbers, match="step 3: the gradient of the loss term wild of steep is not finite"):
        fit.run(Nobody())


def test_a_backward_that_is_not_compiled_is_taken_again_plainly(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from torch._dynamo.exc import TorchDynamoException

    plain, fit = fit_of(tmp_path, []), fit_of(tmp_path, [], compile={"backend": "eager"})
    plain.run(Nobody())
    real = Fit._backward

    def fails(self: Fit, *args: Any) -> Any:
        if isinstance(self.forward, CompiledForward) and self.forward.reason is None:
            raise TorchDynamoException("no backward of this\nmany more lines")
        return real(self, *args)

    monkeypatch.setattr(Fit, "_backward", fails)
    fit.run(Nobody())
    assert lines(fit)[-1] == "search: not compiled, so it takes plain steps: no backward of this"
    found, wanted = weights(fit), weights(plain)
    assert all(torch.equal(found[name], tensor) for name, tensor in wanted.items())


@no_compiler
def test_without_a_compiler_no_phase_begins(tmp_path: Path) -> None:
    recipe = write_tiny(tmp_path)
    with pytest.raises(RecipeError, match=r"phases\.search\.train\.compile|phases\[1\]\.train\.compile") as caught:
        run(recipe, tmp_path / "out", ["phases.search.train.compile=true"])
    assert "install a C++ compiler (g++ or clang++), or use compile: false" in str(caught.value)
    assert not (tmp_path / "out").exists()


def test_in_a_recipe(tmp_path: Path) -> None:
    path = write_tiny(tmp_path)
    plain = load_recipe(path)
    assert plain.train.compiles is None
    assert recipe_sha256(load_recipe(path, ["train.compile=false"])) == recipe_sha256(plain)
    on = load_recipe(path, ["train.compile=true", "phases.finetune.train.compile=false"])
    assert recipe_sha256(on) != recipe_sha256(plain)
    options = [on.train_for(phase).compiles for phase in on.phases]
    assert [one.backend if one else None for one in options] == ["inductor", "inductor", None]
    mode = load_recipe(path, ["train.compile.mode=max-autotune-no-cudagraphs"]).train.compiles
    assert mode is not None
    assert (mode.backend, mode.mode) == ("inductor", "max-autotune-no-cudagraphs")


@pytest.mark.parametrize(
    ("value", "words"),
    [
        ("{backend: inducto}", "inductor"),
        ("{mode: reduce-overhead}", "max-autotune-no-cudagraphs"),
        ("{backend: eager, mode: max-autotune-no-cudagraphs}", "leave mode out"),
        ("fast", "true or false"),
    ],
)
def test_mistakes(tmp_path: Path, value: str, words: str) -> None:
    with pytest.raises(RecipeError, match=r"train\.compile") as caught:
        load_recipe(write_tiny(tmp_path), [f"train.compile={value}"])
    assert words in str(caught.value)
