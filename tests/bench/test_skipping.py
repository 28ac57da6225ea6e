"""`benchmarks/skipping.py` on a model so small that no time of it means anything: what it compares, and how it is asked
for another device, type or compiler.
"""

from __future__ import annotations

import importlib.util
import json
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import timm
import torch
from zoo import SMALL

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


@pytest.fixture
def skipping(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    spec = importlib.util.spec_from_file_location("skipping", BENCHMARKS / "skipping.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    made = partial(timm.create_model, "vit_tiny_patch16_224", **SMALL)
    monkeypatch.setattr(module.timm, "create_model", lambda name: made())
    monkeypatch.setattr(module, "peer", lambda model, image: model)
    monkeypatch.setattr(torch, "compile", lambda model, dynamic: model)
    return module


def rows_of(skipping: ModuleType, folder: Path, *asked: str) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    file = folder / "skipping.json"
    skipping.main(["--rounds", "1", "--threads", "1", "--batches", "2", "--round-to", "8", "--out", str(file), *asked])
    found = json.loads(file.read_text())
    return found["conditions"], found["rows"]


@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def test_cuts_skipping_and_the_same_by_hand(skipping: ModuleType, tmp_path: Path, device: str) -> None:
    """By hand the logits are those of the gates' choice, or it does not come so far."""
    asked = ("--device", device, "--dtype", "bfloat16", "--compile")
    conditions, rows = rows_of(skipping, tmp_path, *asked)
    assert (conditions["device"], conditions["dtype"], conditions["round_to"]) == (device, "bfloat16", 8)
    assert all(row["dtype"] == "bfloat16" for row in rows)
    kinds = [f"{kind}{rounded}" for kind in ("odd", "ragged") for rounded in ("", ", rounded")]
    fixed = ["whole", *kinds, "whole, Torch-Pruning"]
    assert [row["model"] for row in rows if row["compiled"]] == fixed
    eager = [(row["batch_size"], row["model"]) for row in rows if not row["compiled"]]
    ones = [f"{scope} gates{hand}" for scope in ("sample", "batch") for hand in ("", ", by hand")]
    assert eager == [
        *((2, name) for name in fixed), *((1, name) for name in ones), (32, "sample gates"), (32, "batch gates"),
    ]  # fmt: skip
    by_name = {(row["batch_size"], row["model"]): row for row in rows}
    gated, hand = by_name[1, "batch gates"], by_name[1, "batch gates, by hand"]
    assert hand["macs_ratio"] < gated["macs_ratio"] < 0.6  # gate networks count
    assert hand["goal"] is None
    assert gated["goal"] == 0.97
