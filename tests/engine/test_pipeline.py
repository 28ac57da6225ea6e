"""A whole run, small: every promise of the result is checked from outside, then the run is broken off and goes on."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from counting import counted_macs
from safetensors.torch import load_file
from tiny import finished

import usdcore
from usdcore.engine.pipeline import run
from usdcore.errors import UsdcoreError

RECIPE = """
name: tiny
model: {name: vit_tiny_patch16_224, num_classes: 10, kwargs: {patch_size: 4, embed_dim: 32, depth: 2, num_heads: 2}}
data: {source: digits, input_size: 8, batch_size: 64, augment: shift}
budget: {macs: 0.6, batch_size: 32}
seed: 3
threads: 1
train: {lr: 2.0e-3, warmup_epochs: 1, clip_grad: 1.0}
phases:
  - {name: dense, epochs: 3}
  - name: search
    epochs: 4
    train: {sched: none, warmup_epochs: 0}
    strategies:
      - {use: usdc-static, lr: 0.1, ramp: 0.25, target: 0.75}
      - use: usdc-dynamic
        gate_network: search
        space: [G1, G5, G8]
        split: recursive
        ramp: 0.25
        information_weight: 1.0
  - {name: finetune, epochs: 2, strategies: [usdc-dynamic]}
evaluate: {batch_sizes: [1, 32], dial: [0.55], calibration_images: 512}
controls: [narrow]
latency: {batch_sizes: [1], repeats: 2}
"""


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("recipe") / "tiny.yaml"
    path.write_text(RECIPE)
    return path


@pytest.fixture(scope="module")
def done(recipe: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    out = tmp_path_factory.mktemp("runs") / "tiny"
    return out, finished(recipe, out)


def test_the_files_of_a_run(done: tuple[Path, dict[str, Any]]) -> None:
    out, _ = done
    for name in ("recipe.yaml", "metrics.jsonl", "model.safetensors", "result.json", "report.md", "report.html"):
        assert (out / name).is_file(), name
    assert not list(out.rglob("*.aside"))


def test_the_numbers_are_those_of_the_saved_model(done: tuple[Path, dict[str, Any]]) -> None:
    out, result = done
    model = usdcore.load(out / "model.safetensors")
    assert result["compressed"]["params"] == sum(p.numel() for p in model.parameters())
    assert result["compressed"]["params"] < result["dense"]["params"]
    assert result["compressed"]["file_bytes"] < result["dense"]["file_bytes"]
    dense = usdcore.load(out / "checkpoints" / "dense.safetensors")
    assert result["dense"]["macs"] == counted_macs(dense, torch.zeros(1, 1, 8, 8))


def test_a_met_budget_is_met_and_a_missed_one_says_why(done: tuple[Path, dict[str, Any]]) -> None:
    budget = done[1]["budget"]
    off = {
        "calibration images": abs(budget["calibrated"] - 0.6) > 0.005,
        "evaluation images": abs(budget["achieved"] - 0.6) > budget["tolerance"],
        "the search itself": abs(budget["after_search"] - 0.6) > 0.05,
    }
    assert budget["met"] == (not any(off.values()))
    assert all(is_off == (words in budget["why"]) for words, is_off in off.items())


def test_the_control_has_equal_macs_and_epochs(done: tuple[Path, dict[str, Any]]) -> None:
    _, result = done
    (narrow,) = result["controls"]
    assert narrow["epochs"] == result["compressed"]["epochs"] == 9
    assert abs(narrow["macs"] - result["compressed"]["executed_macs"]) < 0.01 * result["dense"]["macs"]


def test_evaluation_rows(done: tuple[Path, dict[str, Any]]) -> None:
    rows = {(row["batch_size"], row["scope"], row["order"]): row for row in done[1]["eval"]}
    assert {(1, "batch", "shuffled"), (32, "batch", "shuffled")} <= set(rows)
    assert all(row["images"] == 360 for row in rows.values())


def test_finished_runs_are_not_run_again(recipe: Path, done: tuple[Path, dict[str, Any]]) -> None:
    out, result = done
    before = (out / "model.safetensors").stat().st_mtime_ns
    assert finished(recipe, out) == result
    assert (out / "model.safetensors").stat().st_mtime_ns == before


def test_another_recipes_folder_is_refused(recipe: Path, done: tuple[Path, dict[str, Any]]) -> None:
    with pytest.raises(UsdcoreError, match=r"belongs to another recipe, .*The difference:\n  seed: 3 -> 4"):
        run(recipe, done[0], ["seed=4"])


def test_a_new_process_gives_the_same_logits(done: tuple[Path, dict[str, Any]], tmp_path: Path) -> None:
    """Only the one file is there; no run folder."""
    file = tmp_path / "only.safetensors"
    file.write_bytes((done[0] / "model.safetensors").read_bytes())
    code = (
        "import sys, torch, usdcore\n"
        "from safetensors.torch import save_file\n"
        "torch.set_num_threads(1)\n"
        "x = torch.randn(8, 1, 8, 8, generator=torch.Generator().manual_seed(0))\n"
        "with torch.no_grad(): save_file({'y': usdcore.load(sys.argv[1])(x)}, sys.argv[2])\n"
    )
    subprocess.run([sys.executable, "-c", code, str(file), str(tmp_path / "y.safetensors")], check=True)
    torch.set_num_threads(1)
    x = torch.randn(8, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        assert torch.equal(load_file(tmp_path / "y.safetensors")["y"], usdcore.load(file)(x))


def test_a_loaded_model_fine_tunes_in_plain_torch(done: tuple[Path, dict[str, Any]]) -> None:
    model = usdcore.load(done[0] / "model.safetensors").train()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    x, y = torch.randn(16, 1, 8, 8), torch.arange(16) % 10
    losses = []
    for _ in range(10):
        loss = torch.nn.functional.cross_entropy(model(x), y)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0]


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("model.num_classes=9", "the data has 10 classes .* set model.num_classes to 10"),
        ("model.name=vit_tiny_patch16_225", "timm has no model named .* did you mean 'vit_tiny_patch16_224'"),
        ("budget.macs=0.01", "can't be reached"),
        ("model.kwargs.num_heads=5", "timm can't make vit_tiny_patch16_224"),
        ("train.opt=adamwx", "timm has no optimizer 'adamwx'"),
    ],
)
def test_mistakes(recipe: Path, tmp_path: Path, override: str, message: str) -> None:
    with pytest.raises(UsdcoreError, match=message):
        run(recipe, tmp_path / "run", [override])
