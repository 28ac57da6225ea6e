"""A small result as the engine writes it; tests change what they are about."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest

from usdcore.report.result import Result

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path


def measured(
    top1: float, macs: int, params: int, latency: dict[int, tuple[float, float]], **extra: Any
) -> dict[str, Any]:
    rows = [
        {"batch_size": size, "median_ms": median, "iqr_ms": 0.1, "ratio_to_dense": ratio, "dtype": "float32"}
        for size, (median, ratio) in latency.items()
    ]
    return {
        "top1": top1,
        "macs": macs,
        "params": params,
        "file_bytes": 4 * params,
        "epochs": 40,
        "latency": rows,
    } | extra


def make_layers(num_layers: int = 4, gated: bool = True) -> list[dict[str, Any]]:
    """Layers that show every case: kept, pruned away, and (where gated) rates from 0 to 1 and no gate."""
    layers = []
    for i in range(num_layers):
        heads, hidden = (0 if i % 4 == 3 else 6 - i % 3), (0 if i % 5 == 2 else 1536 - 240 * (i % 6))
        attention: dict[str, Any] = {"branch": f"blocks.{i}.attn", "heads": heads, "heads_dense": 6, "rate": None}
        attention["dims"] = [64 - 8 * h for h in range(heads)] if heads and i % 2 else None
        ffn = {"branch": f"blocks.{i}.mlp", "hidden": hidden, "hidden_dense": 1536, "rate": None}
        if gated:
            attention["rate"] = None if heads == 0 or i % 7 == 6 else round(1 - 0.13 * (i % 5), 2)
            ffn["rate"] = None if hidden == 0 else round((0.37 * i) % 1, 2)
        network = ("G1", "fc-ln-relu-fc", None, "G9")[i % 4] if gated else None
        layers.append({"block": f"blocks.{i}", "gate_network": network, "attention": attention, "ffn": ffn})
    return layers


def make_raw(**changes: Any) -> dict[str, Any]:
    raw: dict[str, Any] = {
        "usdcore": "0.1.0",
        "recipe": "deit-small-usdc",
        "recipe_sha256": "ab" * 32,
        "model": "deit_small_patch16_224",
        "input_size": 224,
        "num_classes": 10,
        "dense": measured(79.85, 4_598_882_304, 22_050_664, {1: (20.04, 1.0), 32: (512.0, 1.0)}),
        "compressed": measured(
            78.96,
            3_446_000_000,
            16_786_000,
            {1: (14.21, 0.709), 32: (340.5, 0.665)},
            executed_macs=3_350_000_000.0,
            top1_before_finetune=71.3,
        ),
        "controls": [
            measured(
                78.1, 3_360_000_000, 16_100_000, {1: (14.9, 0.743)}, name="narrow", description="dense, 0.73 as wide"
            )
        ],
        "budget": {
            "metric": "macs",
            "target": 0.73,
            "achieved": 0.7284,
            "calibrated": 0.7301,
            "after_search": 0.741,
            "static": 0.7493,
            "batch_size": 32,
            "scope": "batch",
            "tolerance": 0.012,
            "met": True,
        },
        "eval": [
            {
                "batch_size": 1,
                "scope": "sample",
                "order": "shuffled",
                "top1": 78.9,
                "executed_macs": 3.36e9,
                "images": 1000,
            },
            {
                "batch_size": 32,
                "scope": "batch",
                "order": "shuffled",
                "top1": 78.96,
                "executed_macs": 3.35e9,
                "images": 1000,
            },
            {
                "batch_size": 32,
                "scope": "batch",
                "order": "sorted",
                "top1": 78.4,
                "executed_macs": 3.29e9,
                "images": 1000,
            },
        ],
        "dial": [
            {"target": 0.65, "threshold": 0.7, "executed_macs": 3.0e9, "top1": 76.9},
            {"target": 0.7, "threshold": 0.58, "executed_macs": 3.22e9, "top1": 78.5},
        ],
        "structure": make_layers(),
        "gates": {"networks": 3, "decisions": 6, "dynamic": 4, "macs": 745_000, "paper_flops": 890_520},
        "phases": [
            {
                "name": "dense",
                "epochs": 20,
                "seconds": 310.0,
                "strategies": [],
                "macs_after": None,
                "top1_after": 79.85,
            },
            {
                "name": "search",
                "epochs": 20,
                "seconds": 4521.0,
                "strategies": ["usdc-static", "usdc-dynamic"],
                "macs_after": 3_446_000_000,
                "top1_after": 71.3,
            },
        ],
        "provenance": {
            "versions": {"torch": "2.15.0", "timm": "1.0.31", "python": "3.11"},
            "device": "cpu",
            "threads": 1,
            "seed": 7,
            "data": {
                "source": "digits",
                "description": "8x8 digits",
                "fingerprint": "0f0f",
                "train_images": 1437,
                "test_images": 1000,
            },
            "seconds": 4831.0,
            "date": "2026-01-02",
            "commit": None,
        },
    }
    return raw | changes


@pytest.fixture
def raw() -> Callable[..., dict[str, Any]]:
    return make_raw


@pytest.fixture
def layers() -> Callable[..., list[dict[str, Any]]]:
    return make_layers


@pytest.fixture
def result() -> Callable[..., Result]:
    return lambda **changes: Result.model_validate(make_raw(**changes))


@pytest.fixture
def run_dir(tmp_path: Path) -> Callable[..., Path]:
    def write(**changes: Any) -> Path:
        (tmp_path / "result.json").write_text(json.dumps(make_raw(**changes)))
        return tmp_path

    return write
