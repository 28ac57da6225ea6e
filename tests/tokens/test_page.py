"""The examples in the docs run, and do what the page says."""

from __future__ import annotations

import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from counting import counted_macs
from tokens.acting import session
from torch import Tensor, nn

PAGE = Path(__file__).parents[2] / "docs/tokens.md"


@pytest.mark.parametrize("name", ["RandomTokens", "Pairs"])
def test_an_example(name: str, vit: nn.Module, images: Tensor) -> None:
    names: dict[str, Any] = {}
    for block in re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.DOTALL):
        exec(block, names)
    made = session(vit, names[name](SimpleNamespace(use="example")))
    with torch.no_grad():
        executed = made.execution(lambda: [images]).macs
        assert executed < 0.95 * made.dense.macs
        assert executed * len(images) == counted_macs(made.model, images)
