"""A budget of time with a made-up machine: what is measured decides, and nothing here looks at a clock."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from tiny import TINY, finished
from torch import nn
from zoo import INPUT, SMALL

from usdcore.costs import Tree
from usdcore.engine import phases
from usdcore.engine.assess import Assessor
from usdcore.engine.dryrun import dry_run
from usdcore.engine.finish import Finish
from usdcore.engine.timed import CLOSE, TimedBudget, met
from usdcore.errors import UsdcoreError
from usdcore.plans import Plan
from usdcore.projection import Limits, Projector
from usdcore.recipe import load_recipe
from usdcore.session import Session
from usdcore.steps import fast_step, rounded_sizes, slowdowns
from usdcore.strategy import Budget
from usdcore.surgery import shrink
from usdcore.units import find_units

ONE = torch.zeros(1, *INPUT, device="meta")
WIDE = {**SMALL, "embed_dim": 64, "depth": 2, "num_heads": 4}
RECIPE = TINY[: TINY.index("phases:")].replace("macs: 0.6, static: 0.75", "latency: 0.6") + (
    "phases:\n  - {name: dense, epochs: 1}\n  - {name: cut, epochs: 0, strategies: [prune]}\n"
    "evaluate: {batch_sizes: [32], calibration_images: 64}\nlatency: {batch_sizes: [1], repeats: 1}\n"
)


def hidden_widths(model: nn.Module) -> list[int]:
    return [block.mlp.fc1.out_features for block in model.blocks]


class Machine:
    """Time is a part that nothing shrinks, and the rest by the size of matrices with a bend; widths off a step cost
    more.
    """

    def __init__(self, fixed: float = 0.2, step: int = 1, penalty: float = 0.0) -> None:
        self.fixed, self.step, self.penalty, self.whole = fixed, step, penalty, 0

    def time(self, model: nn.Module) -> float:
        size = sum(p.numel() for p in model.parameters() if p.ndim == 2)
        self.whole = self.whole or size
        odd = sum(width % self.step != 0 for width in hidden_widths(model)) / len(hidden_widths(model))
        return (self.fixed + (size / self.whole) ** 0.97) * (1 + self.penalty * odd)

    def __call__(self, models: Mapping[str, nn.Module], batch_size: int = 0, **_: Any) -> dict[str, float]:
        first = self.time(next(iter(models.values())))
        return {name: self.time(model) / first for name, model in models.items()}


class Unasked(Machine):
    """A machine that nobody may measure."""

    def __call__(self, models: Mapping[str, nn.Module], batch_size: int = 0, **_: Any) -> dict[str, float]:
        raise AssertionError("measured again")


@pytest.fixture
def wide() -> nn.Module:
    return timm.create_model("vit_tiny_patch16_224", **WIDE).eval()


def timed(model: nn.Module, target: float, machine: Machine) -> TimedBudget:
    return TimedBudget(model, INPUT, target, 4, machine)


def settled(model: nn.Module, budget: TimedBudget, share: float) -> tuple[float, nn.Module]:
    """The share that was found, and its model."""
    session = Session(model, torch.zeros(1, *INPUT), Budget("macs", share, batch_size=4))
    tree, rng = Tree(session.units), torch.Generator().manual_seed(0)
    groups = [g for g in session.units.groups.values() if g.kind in ("heads", "hidden")]
    scores = {g.name: torch.rand(g.size, generator=rng).numpy() for g in groups}
    projector = Projector(session.units, tree, scores, {})
    found = budget.settle(session, lambda s: projector.project(Limits(s * tree.total)))
    small = shrink(model, Plan(records=tuple(found.records)), torch.zeros(1, *INPUT))
    return session.budget.target, small


@pytest.mark.parametrize("target", [0.5, 0.7])
def test_the_measured_time_meets_the_target(wide: nn.Module, target: float) -> None:
    machine = Machine()
    budget = timed(wide, target, machine)
    begun = budget.begin(torch.device("cpu"))
    assert begun["macs"] < target  # a part of the time does not shrink
    share, small = settled(wide, budget, begun["macs"])
    assert abs(machine({"dense": wide, "small": small})["small"] - target) <= CLOSE
    assert budget.tried[-1][0] == share
    assert begun["conditions"]["batch_size"] == 4


def test_a_bad_first_guess_is_mended(wide: nn.Module) -> None:
    machine = Machine(fixed=0.6)
    budget = timed(wide, 0.6, machine)
    _, small = settled(wide, budget, 0.9)
    assert abs(machine({"dense": wide, "small": small})["small"] - 0.6) <= CLOSE
    assert 1 < len(budget.tried) <= 5


def test_a_time_that_nothing_reaches_is_refused(wide: nn.Module) -> None:
    with pytest.raises(UsdcoreError, match=r"budget\.latency: 0\.1 of the dense model's time can't be reached"):
        timed(wide, 0.1, Machine(fixed=5.0)).begin(torch.device("cpu"))


@pytest.mark.parametrize("step", [1, 8, 32])
def test_the_step_is_the_smallest_that_is_fast(wide: nn.Module, step: int) -> None:
    units = find_units(wide, ONE)
    found = slowdowns(wide, units, ONE, Machine(step=step, penalty=0.2))
    assert fast_step(found) == step
    assert all(slowdown > 1.1 for size, slowdown in found.items() if size < step)
    sizes = rounded_sizes(units, units.groups, step)
    assert bool(sizes) == (step > 1)
    assert all(number % step == 0 for allowed in sizes.values() for number in allowed[:-1])


def test_narrow_layers_have_no_step(vit: nn.Module) -> None:
    narrow = timm.create_model("vit_tiny_patch16_224", **{**SMALL, "embed_dim": 16})
    assert fast_step(slowdowns(narrow, find_units(narrow, ONE), ONE, Machine())) == 1


def test_the_promise_states_its_noise() -> None:
    row = {"ratio_to_dense": 0.53, "ratio_iqr": 0.004, "rounds": 16, "batch_size": 8}
    achieved, tolerance, why = met(row, 0.5)
    assert achieved == 0.53
    assert 0.02 < tolerance < 0.03
    assert "0.5300 of the dense model's time measured for 0.5 asked, at batch size 8; the noise" in why
    assert met(row, 0.52)[2] == ""


def run_with(
    monkeypatch: pytest.MonkeyPatch, folder: Path, machine: Machine, last: Machine, recipe: str = RECIPE
) -> dict[str, Any]:
    """A whole run on one made-up machine, with its end measured on another."""

    def final(self: Finish) -> dict[str, Any]:
        models = {name: self.folder.load(p, self.run.device) for name, p in
                  (("dense", self.folder.dense), ("compressed", self.folder.model))}  # fmt: skip
        row = {"batch_size": 32, "median_ms": 1.0, "iqr_ms": 0.0, "ratio_iqr": 0.0, "rounds": 15}
        return {name: [row | {"ratio_to_dense": ratio}] for name, ratio in last(models).items()}

    monkeypatch.setattr(phases, "latency_ratios", machine)

    def here(self: Finish) -> list[dict[str, Any]]:
        return Assessor.of_file(self.folder.model, self.recipe, self.run.data, self.run.device).rows()

    monkeypatch.setattr(Finish, "_latency", final)
    monkeypatch.setattr(Finish, "_in_new_process", here)
    (folder / "r.yaml").write_text(recipe)
    return finished(folder / "r.yaml", folder / "run")


def test_a_run_under_a_budget_of_time(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    result = run_with(monkeypatch, tmp_path, Machine(fixed=0.05), Machine(fixed=0.05))
    budget = result["budget"]
    assert budget["met"], budget["why"]
    assert budget["metric"] == "latency"
    assert abs(budget["achieved"] - 0.6) <= 0.02
    assert budget["found"]["tried"]
    page = (tmp_path / "run" / "report.md").read_text()
    assert "Asked: 60.0 % of the dense model's latency" in page
    assert "Of the dense model's multiply-accumulates went for good with" in page
    assert json.loads((tmp_path / "run" / "result.json").read_text())["budget"]["found"]["tried"]
    (tmp_path / "run" / "result.json").unlink()  # as if it had been killed before: what was measured is kept
    again = run_with(monkeypatch, tmp_path, Unasked(), Machine(fixed=0.05))
    assert json.dumps(budget) == json.dumps(again["budget"])


@pytest.mark.parametrize("asked", ["macs: 0.6, round_to: auto", "params: 0.6, round_to: auto", "latency: 0.6"])
def test_auto_asks_the_device_once(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, asked: str) -> None:
    recipe = RECIPE.replace("embed_dim: 32", "embed_dim: 64").replace("latency: 0.6", asked)
    machine = Machine(fixed=0.05, step=16, penalty=0.2)
    result = run_with(monkeypatch, tmp_path, machine, machine, recipe)
    found = result["budget"]["round_to"]
    assert found["step"] == 16
    assert found["slowdowns"]["8"] > 1.05 > found["slowdowns"]["16"]
    assert found["conditions"]["threads"] == 1
    hidden = [layer["ffn"]["hidden"] for layer in result["structure"]]
    assert min(hidden) < 256
    assert all(width % 16 == 0 for width in hidden)
    (tmp_path / "run" / "result.json").unlink()  # as if it had been killed before
    again = run_with(monkeypatch, tmp_path, Unasked(), machine, recipe)
    assert again["structure"] == result["structure"]
    assert again["budget"]["round_to"] == found


@pytest.mark.parametrize(("asked", "step"), [("latency: 0.6, round_to: 8", 8), ("macs: 0.6, round_to: 24", 24)])
def test_a_stated_step_needs_no_device(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, asked: str, step: int) -> None:
    recipe = RECIPE.replace("latency: 0.6", asked)
    result = run_with(monkeypatch, tmp_path, Machine(fixed=0.05), Machine(fixed=0.05), recipe)
    assert "round_to" not in result["budget"]
    hidden = [layer["ffn"]["hidden"] for layer in result["structure"]]
    assert min(hidden) < 128
    assert all(width % step == 0 or width == 128 for width in hidden)


def test_sizes_are_a_number_or_auto(tmp_path: Path) -> None:
    (tmp_path / "r.yaml").write_text(RECIPE.replace("latency: 0.6", "latency: 0.6, round_to: fast"))
    with pytest.raises(UsdcoreError, match=r"budget\.round_to"):
        load_recipe(tmp_path / "r.yaml")


def test_a_time_missed_is_said(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    machine, final = Machine(fixed=0.05), Machine(fixed=1.0)
    budget = run_with(monkeypatch, tmp_path, machine, final)["budget"]  # the machine was another at the end
    assert not budget["met"]
    assert "of the dense model's time measured for 0.6 asked" in budget["why"]


def test_gates_that_depend_on_the_input_are_refused(tmp_path: Path) -> None:
    (tmp_path / "r.yaml").write_text(
        TINY.replace("macs: 0.6, static: 0.75", "latency: 0.6").replace("dial: [0.55], ", "")
    )
    with pytest.raises(UsdcoreError, match=r"usdc-dynamic decides for each input.*use budget\.macs"):
        dry_run(load_recipe(tmp_path / "r.yaml"))


def test_a_static_bound_beside_it_is_refused(tmp_path: Path) -> None:
    (tmp_path / "r.yaml").write_text(RECIPE.replace("latency: 0.6,", "latency: 0.6, static: 0.7,"))
    with pytest.raises(UsdcoreError, match="leave static out"):
        load_recipe(tmp_path / "r.yaml")


def test_one_target_only(tmp_path: Path) -> None:
    (tmp_path / "r.yaml").write_text(RECIPE.replace("latency: 0.6,", "latency: 0.6, macs: 0.7,"))
    with pytest.raises(UsdcoreError, match="several targets"):
        load_recipe(tmp_path / "r.yaml")
