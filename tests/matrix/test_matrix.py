"""The matrix on small models: what is called prunable is removed rightly, and no less is prunable than was before."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from matrix.checks import ALL, QUICK, SLOW
from matrix.entries import Entry
from matrix.floor import PATH, outcomes
from matrix.models import MODELS, find
from matrix.reload import reloaded
from matrix.run import run_one
from matrix.subject import Subject
from matrix.trying import attempt

SMALL = [entry for entry in MODELS if entry.has_small]
FLOOR = json.loads(PATH.read_text())
COMPILED = ("deit3_small_patch16_224", "swin_tiny_patch4_window7_224")


@pytest.mark.parametrize("entry", [pytest.param(entry, id=entry.name) for entry in SMALL])
def test_what_is_prunable_is_removed_rightly(entry: Entry, tmp_path: Path) -> None:
    if entry.needs:
        pytest.importorskip(entry.needs)
    for case, found in outcomes(entry, tmp_path).items():
        floor = FLOOR[entry.name][case]
        new = {check: words for check, words in found.problems.items() if check not in floor.get("fails", ())}
        assert not new, f"case {case}"
        assert found.shrunk >= floor["cut"], f"case {case}: {found.refused}"


@pytest.mark.parametrize("name", COMPILED)
@pytest.mark.parametrize("check", SLOW)
def test_it_compiles(name: str, check: str, tmp_path: Path) -> None:
    assert not attempt(Subject(find(name), is_small=True), "C", tmp_path, (check,)).problems


@pytest.fixture
def one_thread() -> Iterator[None]:
    """As the new process, because a convolution's sums depend on it."""
    number = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(number)


@pytest.mark.usefixtures("one_thread")
def test_a_new_process_loads_them(tmp_path: Path) -> None:
    count = 0
    for entry in SMALL:
        if entry.is_here and (entry.is_headline or entry.build is not None):
            found = attempt(Subject(entry, is_small=True), "C", tmp_path, ("reload",))
            count += "reload" in found.checks
    assert count > 15
    assert reloaded(tmp_path) == dict.fromkeys((path.stem for path in tmp_path.glob("*.json")), 0.0)


@pytest.mark.slow
@pytest.mark.parametrize("entry", [pytest.param(entry, id=entry.name) for entry in MODELS])
def test_full_size(entry: Entry) -> None:
    if entry.needs:
        pytest.importorskip(entry.needs)
    found = run_one(entry.name)
    assert {case: c["problems"] for case, c in found["cases"].items() if c["problems"]} == {}


def test_every_check_is_made_somewhere() -> None:
    assert set(QUICK) | set(SLOW) | {"export", "reload"} == set(ALL)
