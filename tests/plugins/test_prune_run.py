"""Pruning by importance in whole runs of a recipe: without training, on weights of one's own, broken off."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from torch import nn
from zoo import randomise

import usdcore
from usdcore.engine import keep, pipeline
from usdcore.engine.dryrun import dry_run
from usdcore.errors import UsdcoreError
from usdcore.recipe import RecipeError, load_recipe


def zeros(model: nn.Module, prefix: str = "blocks.") -> float:
    weights = [
        m.weight for n, m in model.named_modules() if isinstance(m, nn.Linear | nn.Conv2d) and n.startswith(prefix)
    ]
    return sum(int((w == 0).sum()) for w in weights) / sum(w.numel() for w in weights)


RECIPE = """
name: pruned
model: {name: vit_tiny_patch16_224, num_classes: 10, kwargs: {patch_size: 4, embed_dim: 32, depth: 2, num_heads: 2}}
data: {source: digits, input_size: 8, batch_size: 256}
budget: {macs: 0.6, batch_size: 32}
seed: 3
threads: 1
train: {lr: 2.0e-3}
phases:
  - {name: prune, epochs: 0, strategies: [{use: prune}]}
evaluate: {batch_sizes: [32], calibration_images: 64}
latency: {batch_sizes: [1], repeats: 1}
"""


def write(folder: Path, text: str = RECIPE) -> Path:
    path = folder / "r.yaml"
    path.write_text(text)
    return path


@pytest.fixture
def phases_only(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Runs the phases of a recipe into a folder, without what comes after them; returns the run."""
    done = []

    class Finish:
        def __init__(self, around: Any) -> None:
            done.append(around)

        def execute(self) -> dict[str, Any]:
            return {"budget": {"met": True}}

    def start(recipe: Path, out: Path) -> Any:
        pipeline.run(recipe, out)
        return done[-1]

    monkeypatch.setattr(pipeline, "Finish", Finish)
    return start


def test_own_weights_are_pruned_without_training(tmp_path: Path) -> None:
    torch.manual_seed(0)
    kwargs = {"img_size": 8, "in_chans": 1, "patch_size": 4, "embed_dim": 32, "depth": 2, "num_heads": 2}
    own = randomise(timm.create_model("vit_tiny_patch16_224", num_classes=10, **kwargs))
    torch.save(own.state_dict(), tmp_path / "own.pt")
    text = RECIPE.replace("num_classes: 10", f"num_classes: 10, weights: {tmp_path / 'own.pt'}")
    result = pipeline.run(write(tmp_path, text), tmp_path / "out")
    assert result["budget"]["met"]
    assert result["compressed"]["epochs"] == 0
    assert 0.595 < result["compressed"]["macs"] / result["dense"]["macs"] <= 0.6
    small: Any = usdcore.load(tmp_path / "out" / "model.safetensors")
    assert torch.equal(small.head.weight, own.head.weight)
    hidden = small.blocks[0].mlp.fc1.weight
    assert all(bool((own.blocks[0].mlp.fc1.weight == row).all(dim=1).any()) for row in hidden)


def test_zeros_are_not_called_smaller(tmp_path: Path, phases_only: Any) -> None:
    """Averaged weights are zero too, and the result will say what its numbers do not."""
    phase = "{name: sparse, epochs: 1, train: {ema: 0.9}, strategies: [{use: prune-unstructured, sparsity: 0.5}]}"
    text = RECIPE.replace("macs: 0.6", "macs: 1.0").replace(
        "{name: prune, epochs: 0, strategies: [{use: prune}]}", phase
    )
    around = phases_only(write(tmp_path, text), tmp_path / "out")
    assert around.session.units.macs == around.session.dense.macs
    assert zeros(around.session.model) == pytest.approx(0.5, abs=1e-4)
    assert "dense" in around.facts
    (warning,) = around.facts["warnings"]
    assert "50.0% of the weights" in warning["text"]


def test_a_budget_that_zeros_can_not_meet_is_refused(tmp_path: Path) -> None:
    text = RECIPE.replace("{use: prune}", "{use: prune-unstructured, sparsity: 0.5}")
    with pytest.raises(UsdcoreError, match=r"none of the strategies .* removes anything"):
        dry_run(load_recipe(write(tmp_path, text)))


def test_a_dry_run_finds_patterns_that_match_nothing(tmp_path: Path) -> None:
    text = RECIPE.replace("{use: prune}", "{use: prune, ratios: {block.0.mlp: 0.5}}")
    with pytest.raises(RecipeError, match=r"prune\.ratios: 'block\.0\.mlp' matches nothing .*blocks\.0\.mlp"):
        dry_run(load_recipe(write(tmp_path, text)))


def test_taylor_without_epochs_is_a_mistake_of_the_recipe(tmp_path: Path) -> None:
    text = RECIPE.replace("{use: prune}", "{use: prune, importance: taylor}")
    with pytest.raises(RecipeError, match="taylor needs gradients"):
        load_recipe(write(tmp_path, text))


@pytest.mark.parametrize("strategy", ["prune, importance: taylor", "prune-unstructured, sparsity: 0.5, ramp: 0.5"])
def test_a_broken_run_ends_with_the_same_weights(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, phases_only: Any, strategy: str
) -> None:
    macs = "1.0" if "unstructured" in strategy else "0.6"
    text = RECIPE.replace("epochs: 0", "epochs: 2").replace("{use: prune}", f"{{use: {strategy}, XX}}")
    text = text.replace(", XX}", ", every: 1}" if "unstructured" in strategy else "}").replace(
        "macs: 0.6", f"macs: {macs}"
    )
    recipe = write(tmp_path, text + "checkpoint: {seconds: 0}\n")
    unbroken = phases_only(recipe, tmp_path / "a").session.model.state_dict()
    real, written = keep.Epochs.write, []

    def torn(self: Any, *args: Any, **kwargs: Any) -> Any:
        done = real(self, *args, **kwargs)
        written.append(1)
        if len(written) == 7:
            raise KeyboardInterrupt
        return done

    monkeypatch.setattr(keep.Epochs, "write", torn)
    with pytest.raises(KeyboardInterrupt):
        phases_only(recipe, tmp_path / "b")
    monkeypatch.setattr(keep.Epochs, "write", real)
    resumed = phases_only(recipe, tmp_path / "b").session.model.state_dict()
    assert unbroken.keys() == resumed.keys()
    assert all(torch.equal(unbroken[name], resumed[name]) for name in unbroken)


def test_options_are_told_without_torch() -> None:
    import subprocess
    import sys

    code = "import json, sys, usdcore_prune; print(json.dumps('torch' in sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert json.loads(done.stdout) is False
