"""What must be cheap imports neither torch nor timm. Each case runs in a process of its own."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

import usdcore

RECIPE = """\
name: small
model: {name: deit_tiny_patch16_224, num_classes: 10}
data: {source: digits, batch_size: 32}
budget: {macs: 0.5, batch_size: 32}
seed: 0
train: {lr: 1e-3}
phases: [{name: search, epochs: 3, strategies: [usdc-static]}]
"""
HEAVY = ("torch", "timm", "torchvision", "numpy", "matplotlib", "sklearn")


def imported(tmp_path: Path, code: str) -> list[str]:
    """The heavy packages that `code` imports."""
    (tmp_path / "x.yaml").write_text(RECIPE)
    report = f"\nimport sys\nprint()\nprint(*[name for name in {HEAVY} if name in sys.modules])"
    done = subprocess.run(
        [sys.executable, "-c", code + report], capture_output=True, text=True, check=True, cwd=tmp_path, timeout=60
    )
    return done.stdout.splitlines()[-1].split()


@pytest.mark.parametrize(
    "arguments",
    [
        ["--help"],
        ["--version"],
        ["plugins", "list"],
        ["plugins", "show", "usdc-static"],
        ["plugins", "docs", "--out", "pages"],
        ["plugins", "new", "my-method"],
        ["recipe", "validate", "x.yaml"],
        ["recipe", "show", "x.yaml"],
        ["recipe", "schema"],
        ["recipe", "validate", "not-there.yaml"],
    ],
)
def test_commands_that_must_be_cheap(tmp_path: Path, arguments: list[str]) -> None:
    code = 0 if "not-there.yaml" not in arguments else 1
    assert imported(tmp_path, f"from usdcore.cli import main\nassert main({arguments}) == {code}") == []


@pytest.mark.parametrize(
    "module", ["usdcore", "usdcore.errors", "usdcore.hooks", "usdcore.recipe", "usdcore.cli", "usdcore.testing"]
)
def test_modules_that_must_be_cheap(tmp_path: Path, module: str) -> None:
    assert imported(tmp_path, f"import {module}") == []


def test_importing_usdcore_imports_next_to_nothing(tmp_path: Path) -> None:
    code = "import usdcore, sys\nassert not {'pydantic', 'pluggy', 'click', 'ruamel.yaml'} & set(sys.modules)"
    assert imported(tmp_path, code + "\nusdcore.__version__\nusdcore.load_recipe\n") == []


def test_every_public_name_is_there_and_no_module_takes_its_place() -> None:
    for name in usdcore.__all__:
        value = getattr(usdcore, name)
        assert isinstance(value, str) if name == "__version__" else callable(value), name
        assert name in dir(usdcore)
        assert not (Path(usdcore.__file__).parent / f"{name}.py").exists()
        assert not (Path(usdcore.__file__).parent / name).exists()


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="module 'usdcore' has no attribute 'prune'"):
        usdcore.prune  # noqa: B018
