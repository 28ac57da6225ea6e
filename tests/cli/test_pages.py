"""The pages of docs/methods are what `usdcore plugins docs` writes now."""

from __future__ import annotations

from pathlib import Path

import pytest

from usdcore.cli import main

PAGES = Path(__file__).parents[2] / "docs" / "methods"


def test_the_pages_are_current(tmp_path: Path) -> None:
    assert main(["plugins", "docs", "--out", str(tmp_path / "new" / "methods")]) == 0
    written = {path.name: path.read_text() for path in (tmp_path / "new" / "methods").iterdir()}
    there = {path.name: path.read_text() for path in PAGES.iterdir()}
    again = "run `usdcore plugins docs` and remove pages of what is gone"
    assert set(there) == set(written), again
    assert [name for name in there if there[name] != written[name]] == [], again


def test_links_lead_to_pages() -> None:
    linked = {
        line.split("](")[1].split(")")[0] for line in (PAGES / "README.md").read_text().splitlines() if "](" in line
    }
    assert linked == {path.name for path in PAGES.iterdir()} - {"README.md"}


def test_a_folder_that_can_not_be_written(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "file").write_text("")
    assert main(["plugins", "docs", "--out", str(tmp_path / "file")]) == 1
    assert "can't be written" in capsys.readouterr().err
