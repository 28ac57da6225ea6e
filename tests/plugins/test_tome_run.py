"""Token merging in whole runs of a recipe: alone and beside pruning, without training."""

from __future__ import annotations

from pathlib import Path

import pytest

from usdcore.engine import pipeline

RECIPE = """
name: merged
model: {name: vit_tiny_patch16_224, num_classes: 10, kwargs: {patch_size: 1, embed_dim: 16, depth: 2, num_heads: 2}}
data: {source: digits, input_size: 8, batch_size: 256}
budget: {macs: 0.7, batch_size: 32}
seed: 3
threads: 1
train: {lr: 2.0e-3}
phases:
  - {name: merge, epochs: 0, strategies: [STRATEGIES]}
evaluate: {batch_sizes: [32], calibration_images: 64}
latency: {batch_sizes: [1], repeats: 1}
"""


@pytest.mark.parametrize("strategies", ["{use: tome}", "{use: tome, target: 0.85}, {use: prune}"])
def test_the_budget_is_met_off_the_shelf(tmp_path: Path, strategies: str) -> None:
    (tmp_path / "r.yaml").write_text(RECIPE.replace("STRATEGIES", strategies))
    result = pipeline.run(tmp_path / "r.yaml", tmp_path / "out")
    assert result["budget"]["met"], result["budget"]["why"]
    assert result["compressed"]["epochs"] == 0
    assert 0.695 < result["compressed"]["executed_macs"] / result["dense"]["macs"] <= 0.7
    is_pruned = result["compressed"]["params"] < result["dense"]["params"]
    assert is_pruned == ("prune" in strategies)
