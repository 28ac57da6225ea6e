"""The control `random`: our model with random gates at the rates of its own, trained on, saved and resumed."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from ablate.small import evaluate_here
from breaking import harness
from tiny import finished
from torch import nn
from zoo import INPUT

import usdcore
from usdcore.artifact import read_plan
from usdcore.engine import keep
from usdcore.engine.dryrun import dry_run
from usdcore.engine.finish import Finish
from usdcore.engine.forecast import forecast
from usdcore.engine.probe import Probe
from usdcore.engine.random_control import replaced, site_rates, training, why_not
from usdcore.errors import UsdcoreError
from usdcore.gates import Gate, Gating
from usdcore.recipe import load_recipe, read_recipe
from usdcore.units import find_units

RECIPE = """\
name: tiny
model: {name: vit_tiny_patch16_224, num_classes: 10, kwargs: {patch_size: 4, embed_dim: 32, depth: 2, num_heads: 2}}
data: {source: digits, input_size: 8, batch_size: 128}
budget: {macs: 0.7, batch_size: 32, scope: sample}
seed: 3
threads: 1
train: {lr: 2.0e-3}
phases:
  - {name: dense, epochs: 1}
  - name: search
    epochs: 1
    strategies:
      - {use: usdc-static, lr: 0.03, target: 0.85, branches: false}
      - {use: usdc-dynamic, gate_network: G5, lr: 0.02, noise: [0.0, 0.0], init_logit: 0.0, information_weight: 30.0}
  - {name: finetune, epochs: 1, strategies: [usdc-dynamic, {use: distill, teacher: dense}]}
evaluate: {batch_sizes: [32], calibration_images: 256}
controls: [narrow, random]
latency: {batch_sizes: [1], repeats: 1}
"""


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("recipe") / "tiny.yaml"
    path.write_text(RECIPE)
    return path


@pytest.fixture
def _here(monkeypatch: pytest.MonkeyPatch) -> None:
    evaluate_here(monkeypatch)


@pytest.fixture(scope="module")
def done(recipe: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    out = tmp_path_factory.mktemp("runs") / "tiny"
    with pytest.MonkeyPatch.context() as patch:
        evaluate_here(patch)
        return out, finished(recipe, out)


def test_it_is_our_model_with_dice_at_our_rates(done: tuple[Path, dict[str, Any]]) -> None:
    out, result = done
    narrow, random = result["controls"]
    assert (narrow["name"], random["name"]) == ("narrow", "random")
    ours, theirs = read_plan(out / "model.safetensors"), read_plan(out / "checkpoints" / "random.safetensors")
    assert theirs.without_gates().records == ours.without_gates().records != ()
    (record,) = theirs.attached.values()
    stated = dict(zip(record.config["sites"], record.config["rates"], strict=True))
    layers = [layer[kind] for layer in result["structure"] for kind in ("attention", "ffn")]
    measured = {branch["branch"]: branch["rate"] for branch in layers if branch["rate"] is not None}
    assert stated == {name: max(rate, 1e-6) for name, rate in measured.items() if rate < 1}
    assert (record.plugin, record.config["scope"], record.config["threshold"]) == ("random-gates", "sample", None)


def test_it_executes_what_ours_does_and_was_trained_for_longer(done: tuple[Path, dict[str, Any]]) -> None:
    _, result = done
    dense, ours, random = result["dense"], result["compressed"], result["controls"][1]
    assert random["executed_macs"] == pytest.approx(
        ours["executed_macs"] - result["gates"]["macs"], abs=0.03 * dense["macs"]
    )
    assert random["macs"] == ours["macs"] - result["gates"]["macs"]
    assert random["params"] < ours["params"]  # by the gate networks
    assert (ours["epochs"], random["epochs"]) == (3, 4)
    assert random["file_bytes"] > 0
    assert [row["batch_size"] for row in random["latency"]] == [1]
    assert "then trained for 1 epoch more, so longer than the compressed model" in random["description"]
    assert "for each image" in random["description"]


def test_the_report_has_it(done: tuple[Path, dict[str, Any]]) -> None:
    text = (done[0] / "report.md").read_text()
    assert "|  | dense | compressed | narrow | random |" in text
    assert "the comparison is not like for like: it was trained for 4 epochs, ours for 3" in text


def test_it_loads_in_a_new_process_and_runs_at_its_rates(done: tuple[Path, dict[str, Any]], tmp_path: Path) -> None:
    file = tmp_path / "only.safetensors"
    file.write_bytes((done[0] / "checkpoints" / "random.safetensors").read_bytes())
    code = (
        "import sys, torch, usdcore\n"
        "torch.set_num_threads(1)\n"
        "x = torch.randn(64, 1, 8, 8, generator=torch.Generator().manual_seed(0))\n"
        "with torch.no_grad(): print(usdcore.load(sys.argv[1])(x).double().sum().item())\n"
    )
    there = subprocess.run([sys.executable, "-c", code, str(file)], check=True, capture_output=True, text=True).stdout
    model = usdcore.load(file)
    x = torch.randn(64, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        assert model(x).double().sum().item() == pytest.approx(float(there), rel=1e-6)


LAST = 11
"""The number of steps of a stage of one epoch: when all are taken, the stage is over and nothing is noted of it yet."""


@pytest.mark.usefixtures("_here")
@pytest.mark.parametrize(
    "step", [1, pytest.param(7, marks=pytest.mark.slow), pytest.param(LAST, marks=pytest.mark.slow)]
)
def test_broken_off_within_it(
    recipe: Path, done: tuple[Path, dict[str, Any]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: int
) -> None:
    """In the training of either control, one after the other."""
    real, taken = keep.Epochs.after_step, {"control narrow": 0, "control random": 0}

    def after_step(self: Any, fit: Any) -> None:
        real(self, fit)
        if fit.stage.name in taken:
            taken[fit.stage.name] += 1
            if taken[fit.stage.name] == step:
                self.write(fit)
                raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(keep.Epochs, "after_step", after_step)
        for _ in range(2):
            with pytest.raises(KeyboardInterrupt):
                finished(recipe, tmp_path / "broken")
    finished(recipe, tmp_path / "broken")
    assert harness.equal(tmp_path / "broken", done[0])


@pytest.mark.usefixtures("_here")
def test_without_gates_in_the_end_it_is_left_out_and_the_result_says_why(
    recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = Finish._save_and_evaluate

    def constant(self: Finish) -> dict[str, Any]:
        found = real(self)
        return found | {"rates": {name: float(rate > 0.5) for name, rate in found["rates"].items()}}

    monkeypatch.setattr(Finish, "_save_and_evaluate", constant)
    result = finished(recipe, tmp_path / "run", "controls=[random]")
    assert result["controls"] == []
    (warning,) = [one["text"] for one in result["warnings"] if "control" in one["text"]]
    assert warning == (
        "the control random is left out: every gate did the same for all evaluation images, so nothing would be left "
        "to chance"
    )
    assert "control random" not in (tmp_path / "run" / "report.md").read_text().replace(warning, "")


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("phases.1.strategies=[prune]", "nothing here decides by the input whether a branch or a block runs, .*leave"),
        ("phases.1.strategies=[random-gates]", "the gates of random-gates are random already; leave the control"),
        (
            "phases.1.strategies=[adavit]",
            "the gates of adavit decide about blocks.1.attn:heads as well as about branches, so random ones can't",
        ),
        ("phases.1.strategies=[tome]", "nothing here decides by the input"),
    ],
)
def test_refused_before_anything_is_trained(recipe: Path, override: str, message: str) -> None:
    loaded = read_recipe(recipe, [override, "phases.2.strategies=[]", "budget.macs=0.8"])
    with pytest.raises(UsdcoreError, match=rf"tiny.yaml:\d+:\d+ controls\[1\]: {message}"):
        dry_run(loaded.recipe, loaded.written)


def test_a_control_is_named_once(recipe: Path) -> None:
    with pytest.raises(UsdcoreError, match="a control is named twice; remove one"):
        load_recipe(recipe, ["controls=[random, random]"])


def test_the_plan_counts_its_epochs(recipe: Path) -> None:
    found = forecast(load_recipe(recipe, ["phases.2.epochs=2"]), probe=Probe(1e-9))
    phase, (narrow, random) = found["phases"][2], found["controls"]
    assert (narrow["name"], narrow["epochs"]) == ("control narrow", 4)
    assert (random["name"], random["epochs"], random["steps"]) == ("control random", 2, phase["steps"])
    assert random["macs_per_image"] == phase["macs_per_image"]
    assert found["steps"] == sum(stage["steps"] for stage in (*found["phases"], narrow, random))
    stages = {stage["name"]: stage["seconds"] for stage in found["estimate"]["stages"]}
    assert list(stages) == ["dense", "search", "finetune", "control narrow", "control random"]
    assert stages["control random"] == stages["finetune"] > 0
    alone = forecast(load_recipe(recipe, ["controls=[random]", "phases.2.strategies=[]", "phases.2.epochs=0"]))
    assert [control["steps"] for control in alone["controls"]] == [0]


@pytest.mark.parametrize(
    ("phases", "epochs", "as_in", "beside"),
    [
        ("[{name: dense, epochs: 3}, {name: search, epochs: 2, strategies: [usdc-dynamic]}]", 0, None, []),
        (
            "[{name: search, epochs: 2, strategies: [usdc-dynamic, prune]}, {name: long, epochs: 5, strategies: "
            "[usdc-dynamic, distill]}, {name: short, epochs: 1, strategies: [usdc-dynamic]}]",
            6,
            "long",
            ["distill"],
        ),
        (
            "[{name: one, epochs: 2, strategies: [prune]}, {name: two, epochs: 2, strategies: [usdc-dynamic]}, "
            "{name: more, epochs: 4}]",
            4,
            "more",
            [],
        ),
    ],
)
def test_it_is_trained_as_what_follows_the_search(
    recipe: Path, phases: str, epochs: int, as_in: str | None, beside: list[str]
) -> None:
    how = training(load_recipe(recipe, [f"phases={phases}"]), {"blocks.0": 0.5})
    assert how.epochs == epochs
    assert (how.index is None) == (as_in is None)
    assert as_in is None or how.phase.name == as_in
    assert [own.use for own in how.phase.strategies] == ["random-gates", *beside]


class Sites(Gate):
    """Acts at sites, in a scope."""

    def __init__(self, *sites: str, scope: Any = "batch") -> None:
        super().__init__()
        self.sites, self.scope = sites, scope


def test_whose_rates_are_taken(vit: nn.Module) -> None:
    units, gating = find_units(vit, torch.zeros(1, *INPUT)), Gating()
    gating.add("a@blocks/0", Sites("blocks.0"))
    gating.add("a@blocks/1", Sites("blocks.1", "blocks.1.mlp"))
    gating.add("a@blocks/2", Sites("blocks.2.attn", "blocks.2.mlp"))
    gating.add("b@tokens", Sites("blocks.1:tokens", scope="token"))
    gating.add("c@static", Sites("blocks.2.attn", scope="static"))
    rates = {f"blocks.{i}.{kind}": 0.1 * (2 * i + j + 1) for i in range(3) for j, kind in enumerate(("attn", "mlp"))}
    rates |= {"blocks.0.mlp": rates["blocks.0.attn"], "blocks.2.attn": 0.0, "blocks.2.mlp": 1.0}
    assert list(replaced(gating, units)) == ["a@blocks/0", "a@blocks/1", "a@blocks/2"]
    assert why_not(gating, units) == ""
    assert site_rates(gating, units, rates) == {
        "blocks.0": rates["blocks.0.attn"],
        "blocks.1.attn": rates["blocks.1.attn"],
        "blocks.1.mlp": rates["blocks.1.mlp"],
        "blocks.2.attn": 1e-6,
    }
