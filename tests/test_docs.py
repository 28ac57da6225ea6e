"""What the documentation shows is run, and what exists is documented."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from click.testing import CliRunner

from usdcore.cli import COMMANDS, group
from usdcore.recipe import load_recipe, recipe_schema

ROOT = Path(__file__).parent.parent
# Files with rows are ablations of recipes: tests/ablate has those.
RECIPES = sorted(path for path in ROOT.glob("recipes/**/*.yaml") if "\nrows:\n" not in path.read_text())


def blocks(file: str, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", (ROOT / file).read_text(), re.MULTILINE | re.DOTALL)


def test_the_readmes_python_runs(capsys: pytest.CaptureFixture[str]) -> None:
    (code,) = blocks("README.md", "python")
    exec(compile(code, "README.md", "exec"), {})
    printed = capsys.readouterr().out.splitlines()
    for line, comment in zip(printed, re.findall(r"# (Cost.*)", code), strict=False):
        assert line == comment


def test_every_command_is_in_the_readme() -> None:
    text = (ROOT / "README.md").read_text()
    assert all(f"usdcore {name}" in text for name in COMMANDS)


@pytest.mark.parametrize("name", list(COMMANDS))
def test_every_command_has_help(name: str) -> None:
    assert CliRunner().invoke(group, [name, "--help"]).exit_code == 0


@pytest.mark.parametrize("path", RECIPES, ids=[str(p.relative_to(ROOT)) for p in RECIPES])
def test_every_recipe_is_valid(path: Path) -> None:
    assert load_recipe(path).name


def test_the_recipe_in_the_docs_is_valid(tmp_path: Path) -> None:
    (text,) = blocks("docs/recipes.md", "yaml")
    (tmp_path / "r.yaml").write_text(text)
    assert load_recipe(tmp_path / "r.yaml").budget.macs == 0.73


def test_every_key_of_a_recipe_is_in_the_docs() -> None:
    text = (ROOT / "docs/recipes.md").read_text()
    schema = recipe_schema()
    sections = [
        schema,
        *(schema["$defs"][f"{n}Config"] for n in ("Model", "Budget", "Train", "Phase", "Evaluate", "Latency")),
    ]
    for section in sections:
        for key in section["properties"]:
            assert f"`{key}`" in text, key
