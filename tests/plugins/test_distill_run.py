"""Distillation in recipes: a run that goes on, dry runs, mistakes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import timm
from breaking import broken_off_ends_alike, weights_of_runs
from distilling import VIT, weights_of
from zoo import randomise

from usdcore.engine.dryrun import dry_run
from usdcore.errors import UsdcoreError
from usdcore.recipe import RecipeError, dump_recipe, load_recipe

RECIPE = """
name: tiny
model: {name: vit_tiny_patch16_224, num_classes: 10, kwargs: {patch_size: 4, embed_dim: 32, depth: 2, num_heads: 2}}
data: {source: digits, input_size: 8, batch_size: 256}
budget: {macs: 0.7, batch_size: 32}
seed: 3
threads: 1
train: {lr: 2.0e-3, smoothing: 0.0, ema: 0.9}
phases:
  - {name: dense, epochs: 2, strategies: [{use: distill, teacher: TEACHER, cache: true}]}
  - name: search
    epochs: 2
    strategies:
      - {use: distill, cache: false, kind: hard, alpha: 0.5, features: {layers: [0, -1]}}
      - {use: usdc-static, lr: 0.1}
evaluate: {batch_sizes: [32], calibration_images: 64}
"""
DIGITS = {"img_size": 8, "patch_size": 4, "embed_dim": 48, "depth": 3, "num_heads": 2, "in_chans": 1}


@pytest.fixture(scope="module")
def teacher_file(tmp_path_factory: pytest.TempPathFactory) -> str:
    teacher = randomise(timm.create_model(VIT, num_classes=10, **DIGITS))
    return weights_of(teacher, tmp_path_factory.mktemp("teacher") / "t.safetensors")


@pytest.fixture
def recipe(teacher_file: str, tmp_path: Path) -> Path:
    stated = f"{{model: {VIT}, weights: {teacher_file}, kwargs: {DIGITS}}}".replace("'", "")
    (tmp_path / "r.yaml").write_text(RECIPE.replace("TEACHER", stated))
    return tmp_path / "r.yaml"


@pytest.fixture
def run(recipe: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Runs the phases of the recipe into a folder; returns its weights."""
    return weights_of_runs(recipe, monkeypatch)


def test_a_broken_run_ends_with_the_same_weights(run: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Broken off while the cache is filled, when it is full, and in the search with its learned maps."""
    broken_off_ends_alike(run, tmp_path, monkeypatch, (3, 8, 15))


def test_a_dry_run_needs_no_data_and_finds_mistakes(recipe: Path) -> None:
    (recipe.parent / "again.yaml").write_text(dump_recipe(load_recipe(recipe)))
    assert load_recipe(recipe.parent / "again.yaml") == load_recipe(recipe)
    found = dry_run(load_recipe(recipe))
    assert [phase["least"] is not None for phase in found["phases"]] == [False, True]
    for change, message in (
        ("phases.0.strategies.0.teacher.model=vit_tiny_patch16_225", "did you mean 'vit_tiny_patch16_224'"),
        ("phases.0.strategies.0.teacher.weights=gone.pt", r"gone\.pt: no such file"),
        ("phases.0.strategies.0.teacher.kwargs.img_size=16", "can't be used: size mismatch for pos_embed"),
        ("phases.0.strategies.0.teacher={model: regnety_002, pretrained: true}", r"images of \[1, 8, 8\]"),
        ("phases.0.strategies.0.token=distillation", "has no distillation token"),
        ("phases.0.strategies.0.teacher=dense", "there is no dense teacher in this phase"),
    ):
        with pytest.raises(UsdcoreError, match=message):
            dry_run(load_recipe(recipe, [change]))


def test_a_dry_run_looks_at_strategies_of_later_phases(recipe: Path) -> None:
    later = ["phases.0.strategies=[]", "phases.1.strategies=[usdc-static]"]
    text = recipe.read_text().replace("evaluate:", "  - {name: tune, epochs: 1, strategies: [STATED]}\nevaluate:")
    recipe.write_text(text.replace("STATED", "{use: distill, token: distillation}"))
    with pytest.raises(UsdcoreError, match="has no distillation token"):
        dry_run(load_recipe(recipe, later))
    recipe.write_text(text.replace("STATED", "distill"))
    assert dry_run(load_recipe(recipe, later))["phases"][2]["strategies"] == ["distill"]


@pytest.mark.parametrize(
    ("stated", "message"),
    [
        ("{use: distill, teacher: dens}", "a teacher is dense, or a mapping"),
        ("{use: distill, teacher: {modle: x}}", r"teacher\.modle: unknown key; did you mean 'model'"),
        ("{use: distill, teacher: {}}", "a teacher is either timm's .* or one that usdcore saved"),
        ("{use: distill, teacher: {model: a, file: b}}", "a teacher is either timm's .* or one that usdcore saved"),
        ("{use: distill, teacher: {model: a}}", "give either weights or pretrained: true"),
        ("{use: distill, teacher: {model: a, weights: b, pretrained: true}}", "give either weights or pretrained"),
        ("{use: distill, teacher: {file: b, kwargs: {a: 1}}}", "leave out weights, pretrained and kwargs"),
        ("{use: distill, alpha: 1.5}", r"alpha: 1\.5 is too large"),
        ("{use: distill, kind: softer}", "did you mean 'soft'"),
        ("{use: distill, cache: true, features: {}}", "cache keeps the teacher's logits, but features need"),
        ("{use: distill, cache: true, kind: features}", "cache keeps the teacher's logits, but features need"),
        ("{use: distill, features: {layers: []}}", r"features\.layers"),
        ("{use: distill, features: {layers: [{student: 1}]}}", r"layers\[0\]\.teacher: the key is missing"),
    ],
)
def test_mistakes_in_a_recipe(recipe: Path, stated: str, message: str) -> None:
    text = recipe.read_text()
    line = next(line for line in text.splitlines() if "name: dense" in line)
    recipe.write_text(text.replace(line, f"  - {{name: dense, epochs: 2, strategies: [{stated}]}}"))
    with pytest.raises(RecipeError, match=message):
        load_recipe(recipe)
