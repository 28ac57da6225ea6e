"""No recipe, and no table of recipes, does anything but load or give a clean error. `USDCORE_FUZZ_CASES` says how many
are tried.
"""

from __future__ import annotations

import os
import random
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from fuzz.drive import Broken, check, check_dump, check_plan, check_table, inside, read
from fuzz.heavy import HEAVY
from fuzz.mutate import SHIPPED, TABLES, Case, small_tree
from fuzz.recipes import recipes
from hypothesis import HealthCheck, event, given, settings

from usdcore.errors import UsdcoreError
from usdcore.recipe import Problem, RecipeError
from usdcore.recipe.emit import emit
from usdcore.recipe.tree import Origin

CASES = int(os.environ.get("USDCORE_FUZZ_CASES", "2000"))
FIRST = int(os.environ.get("USDCORE_FUZZ_SEED", "0"))
HERE = Path(__file__).parent


def test_every_shipped_recipe_is_among_them() -> None:
    there = {path.name for path in HERE.parents[1].glob("recipes/**/*.yaml")}
    assert SHIPPED.keys() | TABLES.keys() == there
    assert {"methods.yaml", "usdc_table1.yaml"} <= TABLES.keys()
    assert any("dynamicvit" in text for text in SHIPPED.values())


def test_mutated_recipes() -> None:
    """In a process of its own, because there torch must stay away, and memory is limited."""
    command = [sys.executable, "-W", "error", str(HERE / "run.py"), str(CASES * 3 // 4), str(FIRST)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-10_000:] + done.stderr[-10_000:]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("recipes")


@settings(max_examples=CASES // 4, deadline=None, suppress_health_check=list(HealthCheck), database=None)
@given(recipe=recipes())
def test_recipes_that_the_schema_allows(folder: Path, recipe: dict[str, Any]) -> None:
    (folder / "x.yaml").write_text(emit(recipe), encoding="utf-8", newline="")
    with inside(folder):
        loaded = read(Case({}))
        event("loads" if loaded is not None else "refused")
        if loaded is not None:
            check_dump(loaded)


@pytest.mark.parametrize("name", list(HEAVY))
def test_files_as_large_as_they_may_be(folder: Path, name: str) -> None:
    started = time.process_time()
    check(Case({"x.yaml": HEAVY[name].encode()}), folder)
    assert time.process_time() - started < 10  # it is read six times


def test_overrides_as_long_as_they_like(folder: Path) -> None:
    (folder / "x.yaml").write_text("name: x\n")
    with inside(folder):
        for override in ("seed=" + "x" * 10**8, "x" * 10**8 + "=1", "seed=[" + "1," * 10**7):
            assert read(Case({}, overrides=[override])) is None
        assert read(Case({}, overrides=["seed=1"] * 10_000)) is None


def test_plans(folder: Path) -> None:
    """Every fifth of these makes a model."""
    found = [check_plan(small_tree(random.Random(seed)), folder) for seed in range(FIRST, FIRST + CASES // 20)]
    assert {True, False} <= set(found)


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (KeyError("x"), "read_recipe raised KeyError"),
        (UsdcoreError("no place"), "read_recipe raised UsdcoreError"),
        (RecipeError([Problem(Origin("x.yaml"), (), "no line")]), "a mistake without its line"),
        (
            RecipeError([Problem(Origin("x.yaml", 1, 1), (), "a pydantic error")]),
            "a line of a message that is not clean",
        ),
        (None, "reading took"),
    ],
)
def test_what_the_driver_calls_broken(monkeypatch: pytest.MonkeyPatch, error: Exception | None, said: str) -> None:
    def broken(*_: object) -> None:
        if error is not None:
            raise error
        monkeypatch.setattr("fuzz.drive.time.process_time", lambda: 1e9)

    monkeypatch.setattr("fuzz.drive.read_recipe", broken)
    with pytest.raises(Broken, match=said):
        read(Case({}))


def test_what_the_driver_calls_broken_of_tables(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(_: object) -> None:
        raise KeyError("x")

    monkeypatch.setattr("fuzz.drive.read_ablation", broken)
    with pytest.raises(Broken, match="reading a table raised KeyError"):
        check_table(Case({"x.yaml": b""}), folder)
