"""The plugin of docs/plugins.md, word by word, installed as a distribution of its own: it works the first time."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from pathlib import Path

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
def magnitude(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    for code in re.findall(r"^```python\n(.*?)^```", DOC.read_text(), re.MULTILINE | re.DOTALL):
        file = tmp_path / re.match(r"# (\S+)", code)[1]  # type: ignore[index]
        file.parent.mkdir(exist_ok=True)
        file.write_text(code)
    info = tmp_path / "magnitude-0.1.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: magnitude\nVersion: 0.1\n")
    toml = re.search(r"^```toml\n.*?\n(magnitude = .*?)\n```", DOC.read_text(), re.MULTILINE | re.DOTALL)
    assert toml is not None
    (info / "entry_points.txt").write_text("[usdcore]\n" + toml[1].replace('"', "") + "\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    with using(build_registry(candidates=installed())):
        yield
    for name in [name for name in sys.modules if name.split(".")[0] == "magnitude"]:
        del sys.modules[name]


@pytest.mark.usefixtures("magnitude")
def test_it_meets_the_budget(vit: nn.Module, images: torch.Tensor) -> None:
    assert registry().plugin("strategy", "magnitude").distribution == "magnitude"
    strategy = registry().load("strategy", "magnitude")(registry().config("strategy", "magnitude")())
    session = Session(vit, torch.zeros(1, *INPUT), Budget("macs", 0.6, batch_size=5))
    session.begin_phase([strategy])
    session.end_phase(lambda: iter([images]))
    share = counted_macs(session.model.eval(), images) / 5 / session.dense.macs
    assert 0.595 < share <= 0.6


@pytest.mark.usefixtures("magnitude")
def test_it_runs_from_a_recipe(tmp_path: Path) -> None:
    from usdcore.engine.pipeline import run

    (tmp_path / "r.yaml").write_text(
        "name: r\n"
        "model:\n  {name: vit_tiny_patch16_224, num_classes: 10, "
        "kwargs: {patch_size: 4, embed_dim: 32, depth: 2, num_heads: 2}}\n"
        "data: {source: digits, input_size: 8, batch_size: 64}\n"
        "budget: {params: 0.7, batch_size: 32}\nseed: 0\ntrain: {lr: 1.0e-3}\n"
        "phases:\n  - {name: cut, epochs: 0, strategies: [{use: magnitude, power: 1.0}]}\n"
        "  - {name: train, epochs: 1}\n"
        "evaluate: {batch_sizes: [32], calibration_images: 64}\nlatency: {batch_sizes: [1], repeats: 1}\n"
    )
    result = run(tmp_path / "r.yaml", tmp_path / "out")
    assert result["budget"]["after_search"] is None
    assert result["compressed"]["params"] <= 0.7 * result["dense"]["params"]
    assert (tmp_path / "out" / "report.html").is_file()
