"""`benchmarks/README.md` is what its script writes, and names every script there is."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import pytest

HERE = Path(__file__).parents[2] / "benchmarks"


@pytest.fixture(scope="module")
def table() -> ModuleType:
    found = importlib.util.spec_from_file_location("benchmarks_table", HERE / "table.py")
    assert found is not None
    assert found.loader is not None
    module = importlib.util.module_from_spec(found)
    sys.modules[found.name] = module  # dataclasses look themselves up
    found.loader.exec_module(module)
    return module


def test_the_page_is_what_the_script_writes(table: ModuleType) -> None:
    assert (HERE / "README.md").read_text() == table.text(), "run python benchmarks/table.py"


def test_every_script_is_on_the_page(table: ModuleType) -> None:
    assert {page.script for page in table.PAGES} == {path.stem for path in HERE.glob("*.py")} - {"table"}


def test_a_result_without_conditions_says_so(table: ModuleType) -> None:
    assert table.conditions({}) == "no date, machine not recorded"
