"""The plugins of docs/plugins.md, word by word, installed as distributions of their own: they work the first time."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from counting import counted_macs
from torch import nn
from zoo import INPUT

from usdcore.cli import main
from usdcore.errors import UsdcoreError
from usdcore.hooks import build_registry, installed, registry, using
from usdcore.recipe import load_recipe
from usdcore.session import Session
from usdcore.strategy import Budget
from usdcore.testing import conformance, outcomes
from usdcore.testing.laws import LAWS

DOC = (Path(__file__).parent.parent / "docs" / "plugins.md").read_text()


@pytest.fixture(autouse=True, scope="module")
def _installed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    folder = tmp_path_factory.mktemp("site")
    for code in re.findall(r"^```python\n(.*?)^```", DOC, re.MULTILINE | re.DOTALL):
        file = folder / re.match(r"# (\S+)", code)[1]  # type: ignore[index]
        file.parent.mkdir(exist_ok=True)
        file.write_text(code)
    toml = re.search(r"^```toml\n.*?\n(magnitude = .*?)\n```", DOC, re.MULTILINE | re.DOTALL)
    assert toml is not None
    for name, point in (("magnitude", toml[1].replace('"', "")), ("mine", "mine = mine")):
        info = folder / f"{name}-0.1.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 0.1\n")
        (info / "entry_points.txt").write_text(f"[usdcore]\n{point}\n")
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(folder))
        patch.setenv("PYTHONPATH", str(folder))
        with using(build_registry(candidates=installed())):
            yield
    for name in [name for name in sys.modules if name.split(".")[0] in ("magnitude", "mine")]:
        del sys.modules[name]


def test_it_meets_the_budget(vit: nn.Module, images: torch.Tensor) -> None:
    assert registry().plugin("strategy", "magnitude").distribution == "magnitude"
    strategy = registry().load("strategy", "magnitude")(registry().config("strategy", "magnitude")())
    session = Session(vit, torch.zeros(1, *INPUT), Budget("macs", 0.6, batch_size=5))
    session.begin_phase([strategy])
    session.end_phase(lambda: iter([images]))
    share = counted_macs(session.model.eval(), images) / 5 / session.dense.macs
    assert 0.595 < share <= 0.6


RECIPE = (
    "name: r\n"
    "model:\n  {name: vit_tiny_patch16_224, num_classes: 10, "
    "kwargs: {patch_size: 4, embed_dim: 32, depth: 2, num_heads: 2}}\n"
    "data: {source: digits, input_size: 8, batch_size: 64}\n"
    "budget: {params: 0.7, batch_size: 32}\nseed: 0\ntrain: {lr: 1.0e-3}\n"
    "phases:\n  - {name: cut, epochs: 0, strategies: [{use: magnitude, power: 1.0}]}\n"
    "  - {name: train, epochs: 1}\n"
    "evaluate: {batch_sizes: [32], calibration_images: 64}\nlatency: {batch_sizes: [1], repeats: 1}\n"
)


def test_it_runs_from_a_recipe(tmp_path: Path) -> None:
    from usdcore.engine.pipeline import run

    (tmp_path / "r.yaml").write_text(RECIPE)
    result = run(tmp_path / "r.yaml", tmp_path / "out")
    assert result["budget"]["after_search"] is None
    assert result["compressed"]["params"] <= 0.7 * result["dense"]["params"]
    assert (tmp_path / "out" / "report.html").is_file()


def test_an_option_that_was_removed_says_what_to_do(tmp_path: Path) -> None:
    (tmp_path / "r.yaml").write_text(RECIPE.replace("use: magnitude, power: 1.0", "use: careful, temperature: 2.0"))
    with pytest.raises(UsdcoreError) as refusal:
        load_recipe(tmp_path / "r.yaml")
    said = re.search(r"`phases\[0\][^`]*: (this option was removed; [^`]*)`", DOC)
    assert said is not None
    assert said[1] in str(refusal.value)
    assert "careful needs gradients, and the phases that name it have 0 epochs" not in str(refusal.value)


KIT = re.findall(r"^Test\w+ = (conformance\(.*\))$", DOC, re.MULTILINE)


@pytest.mark.parametrize("line", KIT, ids=[re.search(r'"(.+?)"', line)[1] for line in KIT])  # type: ignore[index]
def test_the_examples_keep_the_laws(line: str) -> None:
    """By the lines of the guide's own test file; on two of the models."""
    tests = eval(line, {"conformance": conformance})
    subject = tests.subject
    without = {law.name: "takes long" for law in LAWS[subject.kind] if law.name == "two_processes_agree"}
    few: dict[str, Any] = {"models": ["vit", "swiglu"], "beside": ["usdc-static"]}
    few["without"] = {**subject.without, **without}
    again = conformance(subject.name, kind=subject.kind, options=subject.options, **few)
    broken = [outcome for outcome in outcomes(again) if outcome.state == "broken"]
    assert broken == [], "\n".join(f"{outcome.law}: {outcome.text}" for outcome in broken)


def test_the_guide_lists_every_law_of_a_strategy() -> None:
    assert all(f"`{law.name}`" in DOC for law in LAWS["strategy"])


def test_the_guide_lists_every_method() -> None:
    from usdcore.hooks import Register
    from usdcore.strategy import Strategy

    assert all(f"`register.{name}`" in DOC for name in vars(Register) if not name.startswith("_"))
    methods = [name for name, value in vars(Strategy).items() if callable(value) or isinstance(value, classmethod)]
    assert [name for name in methods if not name.startswith("_") and f"`{name}(" not in DOC] == []


def test_pages_of_a_strangers_plugins(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plugins", "docs", "--distribution", "mine", "--out", str(tmp_path)]) == 0
    page = (tmp_path / "careful.md").read_text()
    assert "| `alpha` | number, >= 0, <= 1 | `0.1` | Share of the teacher's term in the loss. A later phase" in page
    assert "* `temperature` was removed: what it did is now tau of the strategy distill" in page
    assert "careful.md" in (tmp_path / "README.md").read_text()
    assert main(["plugins", "docs", "--distribution", "min", "--out", str(tmp_path)]) == 1
    assert "no plugin of the distribution 'min' is registered; did you mean 'mine'?" in capsys.readouterr().err
