"""The page of a table from outside: what stands in it before and after runs, and what it needs of the world."""

from __future__ import annotations

import csv
import json
import re
import sys
from html import unescape
from pathlib import Path

import pytest
from ablate.small import ABLATION, planned, pretend, write_small
from report.svgs import beyond, collisions, texts

from usdcore.cli import main
from usdcore.errors import UsdcoreError

HOSTILE = "<img src=x> & {{ 7 * 7 }}"
ROWS = f"""\
  - {{name: narrower, model: narrow, set: &controls {{controls: [narrow, random]}}}}
  - {{name: our rates, model: random, set: *controls}}
  - {{name: "at random", control: true, set: {{phases.search.strategies.prune.importance: random}}}}
  - {{name: "{HOSTILE}", set: {{phases.search.epochs: 3}}}}
"""


def shown(path: Path, out: Path, scale: str = "papers") -> tuple[str, str]:
    """The page, and the words that a reader sees."""
    assert main(["ablate", str(path), "--out", str(out), "--scale", scale, "--table"]) == 0
    page = (out / "tables" / f"small-table-{scale}.html").read_text()
    words = re.sub(r"<style>.*?</style>|<[^>]*>", " ", page, flags=re.DOTALL)
    return page, " ".join(unescape(words).split())


def ran(path: Path, out: Path) -> None:
    """Three seeds of every row, evaluated at three batch sizes and on sorted images."""
    _, jobs = planned(path, out / "papers", "papers")
    for row, at in (("magnitude", 80.0), ("narrower", 80.0), ("Taylor", 80.5), ("at random", 70.0), (HOSTILE, 80.0)):
        for seed in (0, 1, 2):
            pretend(jobs, row, seed, at + seed)
            file = jobs.of_row[row, seed].folder / "result.json"
            found = json.loads(file.read_text())
            rows = [(size, "shuffled", at + seed - size / 100) for size in (1, 32, 256)] + [(32, "sorted", at - 9)]
            keys = ("batch_size", "order", "top1")
            found["eval"] = [
                dict(zip(keys, one, strict=True)) | {"scope": "batch", "executed_macs": 1e6} for one in rows
            ]
            attention = {"branch": "blocks.0.attn", "heads": 1, "heads_dense": 2, "rate": 0.25}
            found["structure"][0] |= {"attention": attention, "gate_network": "G7"}
            at_rates = {"name": "random", "top1": 75.0, "macs": 2_000_000, "executed_macs": 990_000}
            found["controls"] = [found["dense"] | {"name": "narrow", "top1": 85.0 + seed, "macs": 1_900_000}, at_rates]
            file.write_text(json.dumps(found))


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, str, Path]:
    folder = tmp_path_factory.mktemp("page")
    path, out = write_small(folder, ABLATION + ROWS), folder / "out"
    ran(path, out)
    return *shown(path, out), out / "tables"


def drawn(made: tuple[str, str, Path], key: str) -> Path:
    return made[2] / f"small-table-papers-{key}.svg"


def numbers(path: Path) -> list[dict[str, str]]:
    with path.with_suffix(".csv").open(newline="") as file:
        return list(csv.DictReader(file))


def test_the_page_needs_nothing_but_itself(made: tuple[str, str, Path]) -> None:
    page, _, _ = made
    for tag in ("script", "link", "img", "iframe", "object", "base"):
        assert f"<{tag}" not in page
    for tag in re.findall(r"<[a-zA-Z][^>]*>", page):
        for value in re.findall(r"""\s(?:src|(?:xlink:)?href|action)=["']?([^"'\s>]+)""", tag):
            assert value.startswith("#"), tag
    assert "url(http" not in page
    assert "@import" not in page
    rest = re.sub(r'xmlns(:xlink)?="http://www\.w3\.org/[^"]*"', "", page)
    assert not re.search(r"https?://", rest)
    ids = re.findall(r'\sid="([^"]+)"', page)
    assert len(ids) == len(set(ids))
    assert set(re.findall(r'href="#([^"]+)"', page)) <= set(ids)


def test_accuracy_over_macs_has_every_row_and_every_seed(made: tuple[str, str, Path]) -> None:
    rows = numbers(drawn(made, "accuracy"))
    kinds = {row["row"]: row["kind"] for row in rows}
    assert kinds["dense"] == "dense"
    assert kinds["narrower"] == kinds["our rates"] == kinds["at random"] == "control"
    assert kinds["Taylor"] == kinds[HOSTILE] == "row"
    assert [row["top1_percent"] for row in rows if row["row"] == "Taylor"] == ["80.5", "81.5", "82.5"]
    # The paper's numbers are drawn beside ours at the paper's scale only.
    assert [(row["row"], row["top1_percent"]) for row in rows if row["kind"] == "paper"] == [("magnitude", "80.25")]
    words = [one.text for one in texts(drawn(made, "accuracy"))]
    for part in ("dense", "narrower", "at random", "magnitude", "paper: magnitude", "81.50 %", "control", "one seed"):
        assert part in words, part
    text = made[1]
    assert "Taylor ours 1.000 M 33.3 % 81.50 % ± 1.00 80.50 % at 1.000 M 81.50 % at 1.000 M 82.50 % at 1.000 M" in text
    assert "narrower ours, control 1.900 M 63.3 % 86.00 % ± 1.00" in text
    assert "our rates ours, control 990.0 k 33.0 % 75.00 %" in text


def test_accuracy_over_batch_size_tells_orders_apart(made: tuple[str, str, Path]) -> None:
    rows = numbers(drawn(made, "batches"))
    assert {row["model"] for row in rows} == {"magnitude", "Taylor", "at random", HOSTILE}
    own = [(r["order"], r["batch_size"], float(r["top1_percent"])) for r in rows if r["model"] == "Taylor"]
    assert own[0] == ("shuffled", "1", pytest.approx(81.49))
    assert own[3] == ("sorted", "32", pytest.approx(71.5))
    words = [one.text for one in texts(drawn(made, "batches"))]
    assert {"shuffled images", "images sorted by class", "1", "32", "256"} <= set(words)
    assert "Taylor sorted batch - 71.50 % -" in made[1]


def test_each_rows_structure_is_drawn_and_in_a_table(made: tuple[str, str, Path]) -> None:
    words = [one.text for one in texts(drawn(made, "layers"))]
    assert {"magnitude", "Taylor", "at random", "0.25", "G7", "seed 0, 66.7 % of dense MACs"} <= set(words)
    assert "Taylor blocks.0 G7 1 of 2 0.25 5 of 128 no gate" in made[1]
    assert "dense blocks.0" not in made[1]


def test_no_label_lies_on_another(made: tuple[str, str, Path]) -> None:
    for key in ("accuracy", "batches", "layers"):
        assert collisions(drawn(made, key)) == [], key
        assert beyond(drawn(made, key)) == [], key


def test_names_are_text(made: tuple[str, str, Path]) -> None:
    page, words, _ = made
    assert words.count(HOSTILE) > 5
    assert "<img" not in page
    assert "49" not in re.findall(r"&amp; (\S+)", page)


def test_figures_say_what_they_show(made: tuple[str, str, Path]) -> None:
    page, _, _ = made
    figures = re.findall(r'<svg role="img" aria-labelledby="([^"]+) ([^"]+)"', page)
    assert len(figures) == 3
    for title, description in figures:
        assert re.search(rf'<title id="{title}">[^<]+</title>', page)
        assert re.search(rf'<desc id="{description}">[^<]+</desc>', page)
    assert page.count("<summary>The numbers of this figure</summary>") == 3


def test_it_is_made_for_narrow_screens_dark_ones_and_paper(made: tuple[str, str, Path]) -> None:
    page, _, _ = made
    assert '<meta name="viewport" content="width=device-width, initial-scale=1">' in page
    for rule in ("prefers-color-scheme: dark", "@media print", "@media (max-width"):
        assert rule in page
    # Whatever may be wider than the screen scrolls in a box of its own, which the keyboard reaches.
    boxes = page.count('<div class="scroll" tabindex="0" role="region"')
    assert boxes == page.count("<table>") + page.count("<svg ")
    # No colour of the page or of its figures is a fixed black or white where the theme decides.
    assert not re.search(r"(fill|stroke): #(1f2328|ffffff)", page)


def test_how_much_of_it_there_is(tmp_path: Path) -> None:
    path, out = write_small(tmp_path, ABLATION), tmp_path / "out"
    _, words = shown(path, out)
    assert "Nothing of this table has been run yet; 6 runs are to be made:" in words
    for sentence in ("evaluated at several batch sizes", "a finished run of a compressed model yet"):
        assert sentence in words
    assert re.search(r"dense [\d.]+ k \(exact\)", words)
    # All that there is to draw are the paper's numbers, and they are called the paper's.
    assert "No row has a finished run yet: the marks are the paper's." in words
    assert "magnitude the paper's 3.000 G - 80.25 %" in words
    _, jobs = planned(path, out / "papers", "papers")
    pretend(jobs, "magnitude", 0, 80.0)
    assert "1 of 6 runs are finished:" in shown(path, out)[1]


def test_an_empty_table_of_other_data_has_no_drawing(tmp_path: Path) -> None:
    path, out = write_small(tmp_path), tmp_path / "out"
    page, words = shown(path, out, "own")
    assert "<svg" not in page
    assert "<details" not in page
    assert "No row has a finished run yet." in words
    assert not list((out / "tables").glob("*.svg"))


def test_without_matplotlib_the_numbers_are_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    path, out = write_small(tmp_path), tmp_path / "out"
    _, jobs = planned(path, out / "own")
    pretend(jobs, "magnitude", 0, 80.0)
    page, words = shown(path, out, "own")
    assert "<svg" not in page
    assert "pip install 'usdcore[plots]'" in words
    assert "<details open>" in page
    assert "magnitude ours 1.000 M 33.3 % 80.00 %" in words


def test_a_row_shows_a_control_that_its_recipe_trains(tmp_path: Path) -> None:
    row = "  - {name: dice, model: random, set: {controls: [narrow]}}\n"
    with pytest.raises(UsdcoreError, match="the control random, which its recipe does not train; give it controls: "):
        planned(write_small(tmp_path, ABLATION + row), tmp_path / "out")
