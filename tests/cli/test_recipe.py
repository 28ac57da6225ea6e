from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest

from usdcore.cli import main
from usdcore.recipe import dump_recipe, load_recipe, recipe_sha256

if TYPE_CHECKING:
    from pathlib import Path

BASE = """\
model: {name: deit_tiny_patch16_224, num_classes: 10}
data: {source: digits, batch_size: 32}
budget: {macs: 0.5, batch_size: 32}
seed: 0
"""
RECIPE = """\
extends: base.yaml
name: small
train: {lr: 1e-3}
phases:
  - name: search
    epochs: 3
    strategies: [usdc-static]
  - {name: finetune, epochs: 2, strategies: [usdc-static]}
"""


@pytest.fixture(autouse=True)
def _files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "base.yaml").write_text(BASE)
    (tmp_path / "x.yaml").write_text(RECIPE)


def test_validate_prints_ok_and_a_summary(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["recipe", "validate", "x.yaml", "--set", "budget.static=0.75"]) == 0
    lines = capsys.readouterr().out.splitlines()
    sha = recipe_sha256(load_recipe("x.yaml", ["budget.static=0.75"]))
    assert lines == [
        "ok",
        "  name    small",
        "  model   deit_tiny_patch16_224, 10 classes, no weights",
        "  data    digits, 8 px, batch size 32, augment none",
        "  budget  0.5 of the dense macs, batch size 32, scope batch; the shrunk model alone 0.75",
        "  seed    0",
        "  phase   search, 3 epochs: usdc-static",
        "  phase   finetune, 2 epochs: usdc-static",
        f"  sha256  {sha}",
    ]


def test_validate_reports_every_mistake_and_exits_with_1(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["recipe", "validate", "x.yaml", "--set", "sed=1", "--set", "train.lr=0"]) == 1
    out, err = capsys.readouterr()
    assert out == ""
    assert err.splitlines() == [
        "error: 2 mistakes",
        "--set sed=1 sed: unknown key; did you mean 'seed'?",
        "--set train.lr=0 train.lr: 0 is too small; use a number greater than 0",
    ]


def test_show_says_where_each_value_comes_from(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["recipe", "show", "x.yaml", "--set", "seed=4"]) == 0
    out = capsys.readouterr().out
    notes = {line.split("#")[0].strip(): line.split("#")[1].strip() for line in out.splitlines() if "#" in line}
    assert notes["name: small"] == "x.yaml:2:1"
    assert notes["macs: 0.5"] == "base.yaml:3:10"
    assert notes["seed: 4"] == "--set seed=4"
    assert notes["sched: cosine"] == "default"
    assert notes["- use: usdc-static"] == "x.yaml:8:46"
    (tmp_path / "shown.yaml").write_text(out)
    assert load_recipe("shown.yaml") == load_recipe("x.yaml", ["seed=4"])


def test_show_as_json(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["recipe", "show", "x.yaml", "--json"]) == 0
    shown = json.loads(capsys.readouterr().out)
    recipe = load_recipe("x.yaml")
    assert shown["recipe"] == recipe.model_dump(mode="json")
    assert shown["recipe_sha256"] == recipe_sha256(recipe)
    assert shown["origins"]["model.name"] == "base.yaml:1:9"
    assert shown["origins"]["phases[0].epochs"] == "x.yaml:6:5"
    assert shown["origins"]["evaluate.batch_sizes"] == "default"


def test_an_inherited_option_comes_from_where_it_was_given(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = RECIPE.replace("strategies: [usdc-static]\n", "strategies: [{use: usdc-static, heads: false}]\n")
    (tmp_path / "x.yaml").write_text(text)
    assert main(["recipe", "show", "x.yaml", "--json"]) == 0
    origins = json.loads(capsys.readouterr().out)["origins"]
    assert origins["phases[1].strategies[0].heads"] == "x.yaml:7:37"
    assert origins["phases[1].strategies[0].hidden"] == "default"


def test_schema_is_json(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["recipe", "schema"]) == 0
    schema = json.loads(capsys.readouterr().out)
    assert "usdc-static" in schema["$defs"]["strategy"]["anyOf"][0]["enum"]


def test_a_dump_validates(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "dump.yaml").write_text(dump_recipe(load_recipe("x.yaml")))
    assert main(["recipe", "validate", "dump.yaml"]) == 0
    assert capsys.readouterr().out.startswith("ok\n")
