"""What users really do wrong is caught before anything is trained, in words that help; docs/mistakes.md shows them."""

from __future__ import annotations

import re
from pathlib import Path
from typing import get_args

import pytest
from mistakes.catch import COMMAND, DOCS, as_docs, golden, inside, prepare, said
from mistakes.table import GOOD, MISTAKES, Mistake, Stage

STAGES: tuple[Stage, ...] = get_args(Stage)
ADVICE = re.compile(
    r"did you mean|\b(add|ask|change|check|choose|define|give|indent|leave|make|mend|name)\b"
    r"|\b(put|remove|rename|set|use|valid|write)\b"
)


@pytest.fixture(autouse=True)
def _no_training(monkeypatch: pytest.MonkeyPatch) -> None:
    def never(_run: object) -> None:
        msg = "it would have trained"
        raise AssertionError(msg)

    monkeypatch.setattr("usdcore.engine.phases.Run.execute", never)


def same(mistake: Mistake, text: str | None) -> bool:
    kept = golden()[mistake.name]
    if mistake.upstream and text is not None:
        return text.split(" (")[0] == kept.split(" (")[0]
    return text == kept


@pytest.mark.parametrize("mistake", MISTAKES, ids=[mistake.name for mistake in MISTAKES])
def test_it_is_caught_in_time(tmp_path: Path, mistake: Mistake) -> None:
    prepare(mistake, tmp_path)
    with inside(tmp_path):
        texts = {stage: said(mistake, stage) for stage in STAGES}
    at = STAGES.index(mistake.stage)
    assert all(texts[stage] is None for stage in STAGES[:at])
    assert all(same(mistake, texts[stage]) for stage in STAGES[at:]), f"{texts}: is it better? {COMMAND}"
    assert not (tmp_path / "out" / "recipe.yaml").exists()


@pytest.mark.parametrize("mistake", MISTAKES, ids=[mistake.name for mistake in MISTAKES])
def test_it_says_where_and_what_to_do(mistake: Mistake) -> None:
    lines = golden()[mistake.name].split("\n")
    many = re.fullmatch(r"(\d+) mistakes", lines[0])
    assert many is None or int(many[1]) == len(lines) - 1
    for line in lines[1:] if many else lines:
        assert re.match(r"(x\.yaml:\d+:\d+|--set )", line), line
        assert ADVICE.search(line), line


def test_the_good_recipe_is_good(tmp_path: Path) -> None:
    good = Mistake("none")
    assert good.text == GOOD
    prepare(good, tmp_path)
    with inside(tmp_path):
        assert said(good, "validate") is None
        assert said(good, "plan") is None
        with pytest.raises(AssertionError, match="it would have trained"):
            said(good, "run")


def test_the_docs_are_current() -> None:
    assert DOCS.read_text() == as_docs(golden()), f"make them anew: {COMMAND}"
