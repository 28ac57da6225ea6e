"""The kit's own edges: what it refuses, what it leaves out, how pytest sees it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from usdcore.errors import UsdcoreError
from usdcore.testing import Broken, conformance, outcomes
from usdcore.testing.laws import LAWS


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        ({"kind": "strategie"}, "no kind of plugin is named 'strategie'; did you mean 'strategy'?"),
        ({"models": ["vitt"]}, "no model in the kit is named 'vitt'; did you mean 'vit'?"),
        ({"models": []}, "models is empty; name at least one of vit, deit,"),
        ({"without": {"export": "why"}}, "no law for a strategy is named 'export'; did you mean 'exports'?"),
    ],
)
def test_what_does_not_exist_is_refused(arguments: dict[str, Any], text: str) -> None:
    with pytest.raises(UsdcoreError) as refusal:
        conformance("prune", **arguments)
    assert text in str(refusal.value)


def test_without_pytest_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pytest", None)
    with pytest.raises(UsdcoreError, match="pytest is not installed: pip install pytest"):
        conformance("prune")


def test_of_what_is_not_registered_one_law_is_broken() -> None:
    found = outcomes(conformance("not-there"))
    assert {outcome.law for outcome in found if outcome.state == "broken"} == {"registers_without_torch"}
    assert all("no strategy is named 'not-there'" in o.text for o in found if o.state == "not tried")


def test_options_that_are_refused_break_the_law_of_options() -> None:
    (law,) = [law for law in LAWS["strategy"] if law.name == "options_are_validated"]
    with pytest.raises(Broken, match="the options of this test are refused: sparsity: Field required"):
        law.try_on(conformance("prune-unstructured").subject, None)  # type: ignore[attr-defined]


def test_pytest_finds_a_test_for_each_law_whatever_the_class_is_called(tmp_path: Path) -> None:
    """And a failure is its message alone."""
    (tmp_path / "test_it.py").write_text(
        "from usdcore.testing import conformance\n"
        "my_laws = conformance('not-there', models=['vit', 'swiglu'], beside=[], without={'exports': 'no need'})\n"
    )
    command = [sys.executable, "-m", "pytest", "-v", "-rs", "-p", "no:cacheprovider", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, timeout=120, check=False)
    assert all(f"my_laws::test_{law.name}" in done.stdout for law in LAWS["strategy"] if law.over != "others")
    assert "my_laws::test_neutral_equals_original[swiglu]" in done.stdout
    assert "left out by the author: no need" in done.stdout
    assert "strategy not-there\n  law: listing plugins stays fast\n  no installed plugin registers it" in done.stdout
    assert "Traceback" not in done.stdout
    assert "During handling" not in done.stdout
    assert "1 failed" in done.stdout
