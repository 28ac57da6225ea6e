"""The example of a training loop of one's own really compresses, and what it saves can be loaded."""

from __future__ import annotations

import importlib.util
from pathlib import Path

PATH = Path(__file__).parents[2] / "examples" / "own_loop.py"


def test_it_compresses(tmp_path: Path) -> None:
    spec = importlib.util.spec_from_file_location("own_loop", PATH)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    found = module.main(10, tmp_path / "model.safetensors")
    assert 0.58 < found["macs"] <= 0.6
    assert found["dense_top1"] > 75
    assert found["top1"] > found["dense_top1"] - 10
