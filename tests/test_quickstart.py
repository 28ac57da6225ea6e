"""The README's first command keeps its promises. Takes about two minutes: it is the main job, so it is no slow test."""

from __future__ import annotations

from pathlib import Path

import pytest

from usdcore.engine.pipeline import run

RECIPE = Path(__file__).parent.parent / "recipes" / "quickstart.yaml"


@pytest.mark.timeout(900)
def test_quickstart(tmp_path: Path) -> None:
    result = run(RECIPE, tmp_path / "run")  # raises if the budget is missed
    dense, compressed, (narrow,) = result["dense"], result["compressed"], result["controls"]
    assert dense["top1"] >= 95
    assert compressed["top1"] >= dense["top1"] - 2
    assert abs(result["budget"]["after_search"] - 0.5) < 0.05
    assert compressed["params"] < 0.8 * dense["params"]
    assert any(0 < layer["ffn"]["hidden"] < layer["ffn"]["hidden_dense"] for layer in result["structure"])
    assert result["gates"]["dynamic"] >= 1
    assert {row["batch_size"] for row in result["eval"]} >= {1, 8, 32, 256}
    assert narrow["epochs"] == compressed["epochs"]
    assert abs(narrow["macs"] - compressed["executed_macs"]) < 0.005 * dense["macs"]
    for model in (dense, compressed, narrow):
        assert [row["batch_size"] for row in model["latency"]] == [1, 32]
