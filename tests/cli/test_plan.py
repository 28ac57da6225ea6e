"""`usdcore plan` as a user types it: what it prints, its JSON, and what bad input says."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from usdcore.cli import main

TEXT = """\
name: small
model: {name: vit_tiny_patch16_224, num_classes: 10, kwargs: {patch_size: 4, embed_dim: 32, depth: 2, num_heads: 2}}
data: {source: digits, input_size: 8, batch_size: 64}
budget: {macs: 0.7, batch_size: 32}
seed: 0
device: cpu
train: {lr: 2.0e-3}
phases:
  - {name: search, epochs: 2, strategies: [usdc-static]}
  - {name: finetune, epochs: 4}
evaluate: {batch_sizes: [32], calibration_images: 256}
"""


@pytest.fixture
def recipe(tmp_path: Path) -> str:
    (tmp_path / "x.yaml").write_text(TEXT)
    return str(tmp_path / "x.yaml")


def test_the_words(recipe: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan", recipe, "--probe", "1"]) == 0
    text = capsys.readouterr().out
    for part in (
        "images: 1,437 to train on, 360 to evaluate on (known to the data source)",
        "  44 steps (22 an epoch)",
        "in all 132 steps of 64 images",
        "memory for training, an estimate",
        "ESTIMATE of time, from a probe and not from a run: about",
        "CPU-hours on one device",
        "  measured on ",
        "not in it: loading and augmenting images",
    ):
        assert part in text, part


def test_json_has_the_same_numbers(recipe: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan", recipe, "--probe", "1", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["steps"] == 132
    assert [stage["steps"] for stage in found["estimate"]["stages"]] == [44, 88]
    assert found["estimate"]["is_estimate"] is True
    assert found["memory"]["peak"] > found["memory"]["weights"] > 0


def test_without_a_probe(recipe: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan", recipe, "--probe", "0"]) == 0
    text = capsys.readouterr().out
    assert "ESTIMATE" not in text
    assert "in all 132 steps" in text
    assert "activations are not in it" in text


def test_stated_images(recipe: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan", recipe, "--probe", "0", "--images", "6400", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["images"]["train"], found["images"]["evaluation"], found["steps"]) == (6400, 360, 600)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--images", "many"], "'many' is not one or two numbers of images, such as 1281167,50000"),
        (["--images", "1,2,3"], "is not one or two numbers"),
        (["--images", "0"], "is not one or two numbers"),
        (["--probe", "-1"], "-1.0 is not in the range"),
        (["--probe", "nan"], "--probe"),
    ],
)
def test_bad_input(recipe: str, arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan", recipe, *arguments]) == 1
    assert message in capsys.readouterr().err


def test_a_gpu_that_is_not_here_is_not_probed(
    recipe: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    assert main(["plan", recipe, "--probe", "1", "--set", "device=cuda"]) == 0
    text = capsys.readouterr().out
    assert "CPU-hours on one device" in text
    assert "note: device: cuda was asked for, and torch sees no CUDA device here" in text
