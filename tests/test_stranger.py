"""The plugin of docs/plugins.md, taken from the page word by word, works the first time and needs no change in the core."""

from __future__ import annotations

import importlib
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest
import torch
from counting import counted_macs
from torch import nn
from zoo import INPUT

from usdcore.hooks import build_registry, installed, registry, using
from usdcore.session import Session
from usdcore.strategy import Budget

DOC = Path(__file__).parent.parent / "docs" / "plugins.md"


@pytest.fixture
def magnitude(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[ModuleType]:
    for code in re.findall(r"^```python\n(.*?)^```", DOC.read_text(), re.MULTILINE | re.DOTALL):
        file = tmp_path / re.match(r"# (\S+)", code)[1]  # type: ignore[index]
        file.parent.mkdir(exist_ok=True)
        file.write_text(code)
    monkeypatch.syspath_prepend(str(tmp_path))
    yield importlib.import_module("magnitude")
    for name in [name for name in sys.modules if name.split(".")[0] == "magnitude"]:
        del sys.modules[name]


def test_it_meets_the_budget(magnitude: ModuleType, vit: nn.Module, images: torch.Tensor) -> None:
    with using(build_registry(magnitude, candidates=installed())):
        config = registry().config("strategy", "magnitude")()
        strategy = registry().load("strategy", "magnitude")(config)
        session = Session(vit, torch.zeros(1, *INPUT), Budget("macs", 0.6, batch_size=5))
        session.begin_phase([strategy])
        session.end_phase(lambda: iter([images]))
    share = counted_macs(session.model.eval(), images) / 5 / session.dense.macs
    assert 0.595 < share <= 0.6


def test_it_runs_from_a_recipe(magnitude: ModuleType, tmp_path: Path) -> None:
    from usdcore.engine.pipeline import run

    (tmp_path / "r.yaml").write_text(
        "name: r\n"
        "model: {name: vit_tiny_patch16_224, num_classes: 10, kwargs: {patch_size: 4, embed_dim: 32, depth: 2, num_heads: 2}}\n"
        "data: {source: digits, input_size: 8, batch_size: 64}\n"
        "budget: {params: 0.7, batch_size: 32}\nseed: 0\ntrain: {lr: 1.0e-3}\n"
        "phases:\n  - {name: cut, epochs: 0, strategies: [{use: magnitude, power: 1.0}]}\n  - {name: train, epochs: 1}\n"
        "evaluate: {batch_sizes: [32], calibration_images: 64}\nlatency: {batch_sizes: [1], repeats: 1}\n"
    )
    with using(build_registry(magnitude, candidates=installed())):
        result = run(tmp_path / "r.yaml", tmp_path / "out")
    assert result["budget"]["after_search"] is None
    assert result["compressed"]["params"] <= 0.7 * result["dense"]["params"]
    assert (tmp_path / "out" / "report.html").is_file()
