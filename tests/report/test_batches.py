from __future__ import annotations

import csv

from report.svgs import beyond, collisions, texts

from usdcore.report.batches import batches_table, draw_batches, series_of
from usdcore.report.result import Evaluation


def row(batch_size, top1, order="shuffled", scope="batch"):
    return Evaluation(batch_size=batch_size, scope=scope, order=order, top1=top1, executed_macs=3e6, images=360)


def seeds(top1, *, order="shuffled"):
    """Two seeds, a point apart."""
    return [[row(size, top1 + seed - size / 100, order) for size in (1, 32, 256)] for seed in (0, 1)]


def test_a_line_has_the_mean_and_the_spread_of_its_seeds():
    (line,) = series_of("ours", seeds(90.0))
    assert [(at.batch_size, round(at.mean, 2)) for at in line.points] == [(1, 90.49), (32, 90.18), (256, 87.94)]
    assert [round(at.spread, 3) for at in line.points] == [0.707] * 3
    assert batches_table([line]).rows == (
        ("ours", "shuffled", "batch", "90.49 % ± 0.71", "90.18 % ± 0.71", "87.94 % ± 0.71"),
    )


def test_sorted_images_and_other_scopes_are_lines_of_their_own():
    rows = [row(1, 90.0), row(32, 91.0), row(32, 85.0, "sorted"), row(32, 90.5, scope="sample")]
    found = series_of("ours", [rows])
    assert [(one.order, one.scope, one.is_shuffled, len(one.points)) for one in found] == [
        ("shuffled", "batch", True, 2),
        ("shuffled", "sample", True, 1),
        ("sorted", "batch", False, 1),
    ]
    assert batches_table(found).rows[2][3:] == ("-", "85.00 %")


def test_one_batch_size_is_no_line():
    assert series_of("ours", [[row(32, 90.0), row(32, 80.0, "sorted"), row(1, None)]]) == []
    assert series_of("ours", []) == []


def test_every_line_is_named_once_and_nothing_lies_on_anything(tmp_path):
    series = [one for i in range(25) for one in series_of(f"row {i} <b>", seeds(90.0 + i / 50))]
    series += series_of("row 0 <b>", [[row(1, 88.0, "sorted"), row(32, 70.0, "sorted"), row(32, 69.0, scope="sample")]])
    svg, png, numbers = draw_batches(series, "A title", "and a line under it", tmp_path / "batches")
    words = [one.text for one in texts(svg)]
    for i in range(25):
        assert words.count(f"row {i} <b>") == 1
    assert {"1", "32", "256", "shuffled images", "images sorted by class"} <= set(words)
    assert collisions(svg) == []
    assert beyond(svg) == []
    assert png.stat().st_size > 1000
    with numbers.open(newline="") as file:
        found = list(csv.DictReader(file))
    assert len(found) == 25 * 3 + 3
    assert (found[0]["model"], found[0]["batch_size"], found[0]["seeds"]) == ("row 0 <b>", "1", "2")


def test_what_one_batch_size_has_in_another_scope_is_in_the_table_only(tmp_path):
    rows = [row(1, 90.0), row(32, 91.0), row(32, 10.0, scope="sample")]
    svg, _, numbers = draw_batches(series_of("ours", [rows]), "t", "l", tmp_path / "b")
    ticks = [float(one.text) for one in texts(svg) if one.text.replace(".", "").isdecimal()]
    assert min(tick for tick in ticks if tick not in (1, 32)) > 80
    assert "10.0" in numbers.read_text()


def test_many_batch_sizes_and_impossible_ones(tmp_path):
    rows = [row(size, 90.0) for size in (-4, 0, *range(1, 40), 1000, 1001, 10**18)]
    svg, _, _ = draw_batches(series_of("ours", [rows]), "t", "l", tmp_path / "b")
    assert collisions(svg) == []
    assert {"1", str(10**18)} <= {one.text for one in texts(svg)}


def test_without_sorted_images_nothing_is_said_of_them(tmp_path):
    svg, _, _ = draw_batches(series_of("ours", seeds(90.0)[:1]), "t", "l", tmp_path / "b")
    words = [one.text for one in texts(svg)]
    assert "images sorted by class" not in words
    assert "standard deviation over seeds" not in words
