"""What differs between two recipes, key by key, in the words of `--set`."""

from __future__ import annotations

from pathlib import Path

import pytest
from tiny import write_tiny

from usdcore.engine.difference import differences
from usdcore.recipe import load_recipe


@pytest.mark.parametrize(
    ("override", "lines"),
    [
        ("seed=4", ["seed: 3 -> 4"]),
        ("train.lr=0.01", ["train.lr: 0.002 -> 0.01"]),
        (
            "phases.1.strategies.1.lr=0.5",
            ["phases.1.strategies.1.lr: 0.02 -> 0.5", "phases.2.strategies.0.lr: 0.02 -> 0.5"],
        ),
        ("phases.2.train.lr=0.5", ["phases.2.train: {} -> nothing", "phases.2.train.lr: nothing -> 0.5"]),
        ("evaluate.batch_sizes=[1, 2]", ["evaluate.batch_sizes: [32] -> [1, 2]"]),
        ("model.weights=x.pt", ['model.weights: null -> "path"']),
        ("device=cpu", []),
        ("threads=2", []),
        ("data.workers=3", []),
        ("checkpoint.seconds=7", []),
        ("note=other", []),
        ("train.optimizer_state=fresh", ['train.optimizer_state: "carry" -> nothing']),
    ],
)
def test_differences(tmp_path: Path, override: str, lines: list[str]) -> None:
    path = write_tiny(tmp_path)
    assert differences(load_recipe(path), load_recipe(path, [override])) == lines
