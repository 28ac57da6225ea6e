"""A recipe is written out so that it loads again; its hash names what it computes."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from usdcore.recipe import Recipe, dump_recipe, load_recipe, recipe_schema, recipe_sha256

if TYPE_CHECKING:
    from collections.abc import Callable

RICH = """\
extends: base.yaml
model: {weights: my weights.pt, kwargs: {a: no, b: "1e3", c: [1, {d: null}], "e f": .inf, g: "ü\\t\\x7f"}}
budget: {macs: 0.25, static: 0.5, scope: sample}
threads: 3
train: {ema: 0.99}
phases:
  - {name: a, epochs: 1, strategies: [{use: prune, ratio: 0.5, split: {use: halves, least: 2}, teacher: t.pt}, distill]}
  - {name: b, epochs: 0, train: {ema: null, lr: 1}, strategies: [{use: prune, tau: 4}]}
  - {name: c, epochs: 0, strategies: [prune]}
evaluate: {dial: [0.1, 0.2]}
controls: [narrow]
"""


@pytest.fixture
def rich(write: Callable[..., str], base: str) -> Recipe:
    return load_recipe(write(RICH))


def test_a_dump_loads_as_an_equal_recipe(write: Callable[..., str], rich: Recipe) -> None:
    again = load_recipe(write(dump_recipe(rich), "resolved.yaml"))
    assert again == rich
    assert dump_recipe(again) == dump_recipe(rich)
    assert recipe_sha256(again) == recipe_sha256(rich)
    assert again.train_for(again.phases[1]).ema is None


def test_a_dump_is_readable(base: str) -> None:
    lines = dump_recipe(load_recipe(base)).splitlines()
    assert {"name: toy", "model:", "  name: vit", "  num_classes: 10", "note: null"} <= set(lines)
    assert "      - use: prune" in lines
    assert "        noise: [1.0, 0.0]" in lines


SAME = [
    "note=a smoke test",
    "device=cpu",
    "threads=2",
    "data.workers=8",
    "data.root=/elsewhere",
    "model.weights=other.pt",
    "phases.0.strategies.0.teacher=other.pt",
]
OTHER = [
    "seed=1",
    "name=other",
    "budget.macs=0.3",
    "train.lr=0.002",
    "data.batch_size=9",
    "model.weights=null",
    "phases.0.strategies.0.ratio=0.4",
    "phases.0.strategies.0.teacher=null",
    "evaluate.calibration_images=9",
]


@pytest.mark.parametrize("override", SAME)
def test_where_a_recipe_runs_is_not_in_its_hash(write: Callable[..., str], base: str, override: str) -> None:
    name = write(RICH)
    assert recipe_sha256(load_recipe(name, [override])) == recipe_sha256(load_recipe(name))


@pytest.mark.parametrize("override", OTHER)
def test_what_it_computes_is(write: Callable[..., str], base: str, override: str) -> None:
    name = write(RICH)
    assert recipe_sha256(load_recipe(name, [override])) != recipe_sha256(load_recipe(name))


def test_writing_a_default_out_changes_no_hash(base: str) -> None:
    hashes = {recipe_sha256(load_recipe(base, list(o))) for o in ([], ["device=auto"], ["train.opt=adamw", "seed=0x0"])}
    assert len(hashes) == 1
    assert len(hashes.pop()) == 64


def test_a_recipe_from_python_is_the_same(base: str, as_data: dict[str, Any]) -> None:
    recipe = Recipe.model_validate(as_data)
    assert recipe == load_recipe(base)
    assert Recipe.model_validate(recipe.model_dump()) == recipe
    assert Recipe.model_validate_json(recipe.model_dump_json()) == recipe
    with pytest.raises(ValueError, match="frozen"):
        recipe.seed = 3


def test_the_schema_knows_the_plugins() -> None:
    schema = recipe_schema()
    assert set(schema["required"]) == {"name", "model", "data", "budget", "seed", "train", "phases"}
    assert "extends" in schema["properties"]
    definitions = schema["$defs"]
    assert definitions["strategy"]["anyOf"] == [
        {"enum": ["distill", "prune"]},
        {"$ref": "#/$defs/Plain"},
        {"$ref": "#/$defs/Prune"},
    ]
    assert definitions["Prune"]["required"] == ["use", "ratio"]
    assert definitions["Prune"]["properties"]["splits"]["items"] == {"$ref": "#/$defs/split"}
    assert definitions["Prune"]["properties"]["use"]["const"] == "prune"
    assert schema["properties"]["data"]["$ref"] == "#/$defs/data-source"
    assert definitions["PhaseConfig"]["properties"]["strategies"]["items"] == {"$ref": "#/$defs/strategy"}
    assert "lr" not in definitions["TrainOverride"].get("required", [])
    assert "x-usdcore-kind" not in str(schema)
