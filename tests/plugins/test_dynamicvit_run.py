"""DynamicViT in whole runs of a recipe: what is frozen when, runs that are broken off, mistakes."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from breaking import broken_off_ends_alike, weights_of_runs

from usdcore.engine import keep
from usdcore.engine.dryrun import dry_run
from usdcore.recipe import RecipeError, load_recipe
from usdcore.runner import CHILD

RECIPE = """
name: tiny
model: {name: vit_tiny_patch16_224, num_classes: 10, kwargs: {patch_size: 2, embed_dim: 32, depth: 2, num_heads: 2}}
data: {source: digits, input_size: 8, batch_size: 256}
budget: {macs: 0.7854, batch_size: 32}
seed: 3
threads: 1
train: {lr: 2.0e-3, smoothing: 0.0, ema: 0.9}
phases:
  - name: drop
    epochs: 2
    strategies: [{use: dynamicvit, frozen_epochs: 1, host_lr: 0.5}]
  - name: finetune
    epochs: 1
    strategies: [{use: dynamicvit, host_lr: 0.1}]
evaluate: {batch_sizes: [32], calibration_images: 64}
"""


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    (tmp_path / "r.yaml").write_text(RECIPE)
    return tmp_path / "r.yaml"


@pytest.fixture
def run(recipe: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Runs the recipe into a folder; returns its weights."""
    return weights_of_runs(recipe, monkeypatch)


def test_a_broken_run_ends_with_the_same_weights(run: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Broken off while the model is frozen, when it no longer is, and in the later phase. While it is frozen nothing of
    it moves, and the predictors do.
    """
    real, seen = keep.Epochs.after_step, []

    def watch(self: Any, fit: Any) -> None:
        real(self, fit)
        weights = fit.model.state_dict()
        seen.append((fit.place, fit.session.host_lr, {name: tensor.clone() for name, tensor in weights.items()}))

    monkeypatch.setattr(keep.Epochs, "after_step", watch)
    run(tmp_path / "unbroken")
    fixed = {"cls_token", "pos_embed"}
    for (_, _, before), (place, rate, after) in pairwise(seen):
        if place.step > 0:
            moved = {name for name in after if not torch.equal(after[name], before[name])}
            own = {name for name in moved if name.startswith(CHILD)}
            assert own
            assert bool(moved - own) == (rate > 0)
            assert not moved & fixed
            assert rate == ((0.0, 0.5)[place.epoch] if place.stage == "drop" else 0.1)
    monkeypatch.setattr(keep.Epochs, "after_step", real)
    broken_off_ends_alike(run, tmp_path / "broken", monkeypatch, (3, 9, 15))


def test_a_dry_run_solves_the_ratio(recipe: Path) -> None:
    first, _ = dry_run(load_recipe(recipe))["phases"]
    assert first["least"] == pytest.approx(0.7854, abs=0.0001)


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("epochs: 2", "epochs: 0", r"dynamicvit learns which tokens to keep .*0 epochs; give it epochs"),
        ("frozen_epochs: 1", "frozen_epochs: 3", r"frozen for 3 epochs of a phase that has 2; use at most 2"),
        ("frozen_epochs: 1", "keep_ratio: 1.5", "keep_ratio"),
        ("host_lr: 0.1", "keep_ratio: 0.5", "keep_ratio"),
        ("[{use: dynamicvit, host_lr: 0.1}]", "[dynamicvit, adavit]", r"both act on the tokens of the model"),
    ],
)
def test_mistakes_in_a_recipe(recipe: Path, old: str, new: str, message: str) -> None:
    recipe.write_text(recipe.read_text().replace(old, new))
    with pytest.raises(RecipeError, match=message):
        load_recipe(recipe)
