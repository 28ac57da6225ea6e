"""docs/families.md is what the results say."""

from __future__ import annotations

import json

from matrix.page import PAGE, text
from matrix.run import RESULT


def test_the_page_is_what_the_results_give() -> None:
    assert PAGE.read_text() == text(json.loads(RESULT.read_text())), "run `python -m tests.matrix --page`"


def test_nothing_fails_in_silence() -> None:
    for row in json.loads(RESULT.read_text())["models"]:
        assert "cases" in row or "error" in row, row["name"]
