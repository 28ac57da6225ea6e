from __future__ import annotations

import csv
import sys
import xml.etree.ElementTree as ET

import matplotlib as mpl
import pytest

from usdcore.report.canvas import PlotsMissingError, inline_svg
from usdcore.report.figure import batches_figure, dial_figure, structure_figure


def read_csv(path):
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def svg_text(path):
    root = ET.parse(path).getroot()
    return " ".join("".join(element.itertext()).strip() for element in root.iter("{http://www.w3.org/2000/svg}text"))


def test_structure_writes_svg_png_and_the_numbers_drawn(result, tmp_path):
    svg, png, table = structure_figure(result(), tmp_path / "figures" / "structure")
    assert [path.name for path in (svg, png, table)] == ["structure.svg", "structure.png", "structure.csv"]
    assert png.read_bytes().startswith(b"\x89PNG")
    words = svg_text(svg)
    for part in ("deit_small_patch16_224", "8x8 digits", "5 of 6 heads", "pruned", "0.87", "fc-ln-relu-fc", "rate 0"):
        assert part in words
    rows = read_csv(table)
    assert len(rows) == 8
    assert rows[1] == {
        "block": "blocks.0",
        "gate_network": "G1",
        "unit": "FFN",
        "branch": "blocks.0.mlp",
        "kept": "1536",
        "dense": "1536",
        "kept_share": "1.0",
        "execution_rate": "0.0",
    }
    assert rows[6]["kept"] == "0"
    assert rows[6]["execution_rate"] == ""


def test_structure_without_gates_shows_no_rates(result, layers, tmp_path):
    svg, _, _ = structure_figure(result(structure=layers(2, gated=False)), tmp_path / "s")
    assert "rate" not in svg_text(svg)


def test_blocks_with_one_branch_and_names_of_any_length(result, tmp_path):
    ffn = {"branch": "b", "hidden": 3, "hidden_dense": 4096, "rate": 0.5}
    layer = {"block": "layers.0." * 9, "gate_network": "long-name-" * 9, "attention": None, "ffn": ffn}
    svg, _, table = structure_figure(result(structure=[layer], model="m" * 300), tmp_path / "s")
    assert "MHSA" not in svg_text(svg)
    assert read_csv(table)[0]["gate_network"] == "long-name-" * 9


def test_dial_draws_every_model_that_was_run(result, raw, tmp_path):
    controls = [raw()["controls"][0], raw()["controls"][0] | {"name": "random gates", "top1": None}]
    svg, png, table = dial_figure(result(controls=controls), tmp_path / "dial")
    assert png.stat().st_size > 1000
    words = svg_text(svg)
    for part in ("dense", "compressed, at its budget", "control: narrow", "dial", "budget asked: 73.0 %", "GMACs"):
        assert part in words
    assert "random" not in words
    rows = read_csv(table)
    assert [row["series"] for row in rows] == ["dense", "compressed", "control", "dial", "dial"]
    assert rows[3]["threshold"] == "0.7"
    assert float(rows[1]["share_of_dense"]) == pytest.approx(0.7284, abs=1e-4)


def test_accuracy_over_batch_size_is_drawn_where_there_are_several(result, raw, tmp_path):
    svg, _, table = batches_figure(result(), tmp_path / "batches")
    words = svg_text(svg)
    for part in ("deit_small_patch16_224: accuracy over batch size", "images sorted by class", "78.90 %"):
        assert part in words
    assert [(row["order"], row["batch_size"], row["top1_percent"]) for row in read_csv(table)] == [
        ("shuffled", "1", "78.9"),
        ("shuffled", "32", "78.96"),
        ("sorted", "32", "78.4"),
    ]
    assert batches_figure(result(eval=raw()["eval"][:1]), tmp_path / "one") == ()


def test_dial_of_a_run_without_any_number_is_an_empty_plot(result, tmp_path):
    _, _, table = dial_figure(result(dense={}, compressed={}, controls=[], dial=[]), tmp_path / "dial")
    assert read_csv(table) == []


def test_drawing_leaves_matplotlib_as_it_was_and_repeats_itself(result, tmp_path):
    before = dict(mpl.rcParams)
    first = structure_figure(result(), tmp_path / "structure")[0].read_bytes()
    again = structure_figure(result(), tmp_path / "structure")[0].read_bytes()
    assert first == again
    assert dict(mpl.rcParams) == before


def test_hostile_names_are_text_in_svg(result, tmp_path):
    name = '<script>x</script> $\\frac$ & "q"'
    svg, _, _ = dial_figure(result(model=name), tmp_path / "dial")
    assert name in svg_text(svg)
    assert "<script" not in svg.read_text()


def test_letters_that_the_font_lacks_are_no_warning(result, tmp_path):
    dial_figure(result(model="模型"), tmp_path / "dial")


def test_without_matplotlib_the_message_says_how_to_get_it(result, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    for draw in (structure_figure, dial_figure):
        with pytest.raises(PlotsMissingError, match=r"pip install 'usdcore\[plots\]'"):
            draw(result(), tmp_path / "x")


def test_an_inlined_figure_follows_the_theme_but_its_words_do_not():
    svg = (
        '<?xml version="1.0"?><svg id="a"><metadata>m</metadata><path id="p"/><rect fill="#ffffff"/>'
        '<use href="#p" style="fill: #1f2328; clip-path: url(#p)"/><text>#1f2328 id="x"</text></svg>'
    )
    assert inline_svg(svg, "n", 'a "title"', "<words>") == (
        '<svg role="img" aria-labelledby="n-title n-desc" id="n-a"><title id="n-title">a &quot;title&quot;</title>'
        '<desc id="n-desc">&lt;words&gt;</desc><path id="n-p"/>'
        '<rect style="fill: var(--paper, #ffffff)"/>'
        '<use href="#n-p" style="fill: var(--ink, #1f2328); clip-path: url(#n-p)"/><text>#1f2328 id="x"</text></svg>'
    )
