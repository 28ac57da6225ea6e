"""docs/resume.md is what benchmarks/results/resume.json gives, and says that every run that was broken off survived."""

from __future__ import annotations

import json

from breaking import harness

PHASES = {"dense", "search", "finetune", "evaluation", "control narrow", "latency and report"}
FOUND = json.loads(harness.RESULT.read_text())


def test_the_page_is_made_of_the_results() -> None:
    assert harness.PAGE.read_text() == harness.page(FOUND), "make it anew: python benchmarks/resume.py page"


def test_every_run_went_on_to_the_same_bits() -> None:
    assert FOUND["equal_with_0_and_3_workers"]
    assert all(row["resumed"] and row["equal"] for row in FOUND["rows"])


def test_twenty_kills_over_all_phases() -> None:
    rows = [row for row in FOUND["rows"] if row["signal"] == "SIGKILL"]
    assert len(rows) >= 20
    assert {row["workers"] for row in rows} == {0, 3}
    assert {row["point"] for row in rows} == {harness.AT_RANDOM, *harness.POINTS}
    assert {row["phase"] for row in rows} >= PHASES


def test_a_page_says_what_did_not_survive() -> None:
    row = {"point": harness.AT_RANDOM, "number": 400, "workers": 3, "signal": "SIGKILL", "phase": "search"}
    lost = harness.page({**FOUND, "rows": [{**row, "resumed": True, "equal": False}]})
    assert "Of 1 runs that were broken off and gone on with, 0 ended" in lost
    assert "| at a random time (40.0 % of the unbroken run's) | search | 3 | SIGKILL | yes | NO |" in lost
