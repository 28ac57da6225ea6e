from __future__ import annotations

import sys
from collections import Counter
from html.parser import HTMLParser

import pytest

from usdcore.errors import UsdcoreError
from usdcore.files import write_atomic
from usdcore.report.page import write_report

HOSTILE = '</title><script>alert(1)</script> {{ 7 * 7 }} $x$ "quoted" <img src=x onerror=y> | [b]*i*'
VOID = {"meta", "img", "br", "link"}


class Page(HTMLParser):
    """Checks that tags balance; keeps tags, attributes and text."""

    def __init__(self, html):
        super().__init__()
        self.open, self.tags, self.attributes, self.words = [], Counter(), [], []
        self.feed(html)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.tags[tag] += 1
        self.attributes += attrs
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags[tag] += 1
        self.attributes += attrs

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.words.append(data)

    @property
    def text(self):
        return " ".join(" ".join(self.words).split())


def written(run):
    report = write_report(run)
    return report, Page((run / "report.html").read_text()), (run / "report.md").read_text()


def test_a_report_is_a_page_a_text_and_figures(run_dir):
    run = run_dir()
    report, page, markdown = written(run)
    names = sorted(str(path.relative_to(run)) for path in report.files)
    assert names == sorted(
        [
            "report.md",
            "report.html",
            *(f"figures/{stem}.{kind}" for stem in ("batches", "dial", "structure") for kind in ("csv", "png", "svg")),
        ]
    )
    assert report.notes == ()
    assert page.tags["svg"] == page.tags["desc"] == 3
    assert page.tags["table"] == 9
    for part in (
        "The budget is met",
        "reported, not promised",
        "blocks.3",
        "4 of them really depend on the input",
        "counted in the budget",
        "not in the budget",
        "usdc-static, usdc-dynamic",
        "ab" * 32,
        "measured on the machine of this run",
    ):
        assert part in page.text
        assert part in markdown
    assert "![" in markdown
    assert not list(run.rglob(".*"))


def test_the_page_needs_nothing_else_and_its_ids_are_unique(run_dir):
    _, page, _ = written(run_dir())
    links = [value for name, value in page.attributes if name in ("src", "href", "xlink:href")]
    assert links
    assert all(link.startswith("#") for link in links)
    ids = Counter(value for name, value in page.attributes if name == "id")
    assert [name for name, count in ids.items() if count > 1] == []
    assert {link[1:] for link in links} <= set(ids)
    assert page.tags["script"] == page.tags["link"] == page.tags["img"] == 0


def test_hostile_names_are_shown_as_they_are(run_dir, raw):
    changes = raw()
    changes["provenance"]["data"]["description"] = HOSTILE
    changes["provenance"]["versions"][HOSTILE] = HOSTILE
    changes["controls"][0] |= {"name": HOSTILE, "description": HOSTILE}
    changes["phases"][0] |= {"name": HOSTILE, "strategies": [HOSTILE]}
    changes["structure"][0] |= {"block": HOSTILE, "gate_network": HOSTILE}
    _, page, markdown = written(run_dir(**changes | {"model": HOSTILE, "recipe": HOSTILE, "note": HOSTILE}))
    assert page.tags["script"] == page.tags["img"] == 0
    assert page.text.count(HOSTILE) > 9
    assert "<script" not in markdown
    assert "<img" not in markdown
    assert "{{ 7 \\* 7 }}" in markdown


def test_a_missed_budget_is_said_in_words(run_dir, raw):
    budget = raw()["budget"] | {"met": False, "achieved": 0.771}
    _, page, markdown = written(run_dir(budget=budget))
    for words in (page.text, markdown):
        assert "The budget is MISSED: 77.1 % measured, 4.1 points above what was asked" in words
    assert ("class", "verdict missed") in page.attributes


def test_a_note_is_shown_only_where_the_result_has_one(run_dir):
    note = "A smoke recipe is no proof of merit."
    assert note not in written(run_dir())[2]
    _, page, markdown = written(run_dir(note=note))
    assert note in page.text
    assert f"> {note}" in markdown


def test_without_matplotlib_the_report_has_no_figures_and_says_why(run_dir, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    run = run_dir()
    report, page, markdown = written(run)
    assert [path.name for path in report.files] == ["report.md", "report.html"]
    assert page.tags["svg"] == 0
    assert "![" not in markdown
    (note,) = report.notes
    assert "pip install 'usdcore[plots]'" in note
    assert note in page.text


def test_what_was_not_run_is_said(run_dir):
    empty = {"eval": [], "dial": [], "structure": [], "controls": [], "phases": []}
    _, page, markdown = written(run_dir(**empty, dense={}, compressed={}))
    assert "Evaluation over batch sizes: not run." in page.text
    assert "Latency: not run." in markdown
    assert page.tags["svg"] == 1


def test_an_unfinished_run_gets_no_report(tmp_path):
    with pytest.raises(UsdcoreError, match="unfinished"):
        write_report(tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_a_failed_write_leaves_the_old_file(tmp_path):
    path = write_atomic(tmp_path / "sub" / "f", b"old")
    with pytest.raises(TypeError):
        write_atomic(path, "text")
    assert path.read_bytes() == b"old"
    assert [entry.name for entry in path.parent.iterdir()] == ["f"]


def test_a_report_says_what_the_numbers_do_not_show(run_dir):
    run = run_dir(warnings=[{"site": "blocks.1.mlp", "text": "usdc-dynamic kept blocks.1.mlp off in every step"}])
    _, page, markdown = written(run)
    for text in (page.text, markdown):
        assert "Warning: usdc-dynamic kept blocks.1.mlp off in every step." in text
