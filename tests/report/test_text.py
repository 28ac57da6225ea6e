from __future__ import annotations

import pytest

from usdcore.report import text


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        (None, "not run"),
        (0, "0"),
        (999, "999"),
        (12.25, "12.2"),
        (1_000, "1.000 k"),
        (999_960_000, "1.000 G"),
        (4_598_882_304, "4.599 G"),
        (17_563_828_224, "17.56 G"),
        (361_220_000_000, "361.2 G"),
        (2e12, "2.000 T"),
    ],
)
def test_count(value, shown):
    assert text.count(value) == shown


@pytest.mark.parametrize(
    ("fraction", "shown"),
    [(None, "not run"), (0.0, "0.0 %"), (0.503, "50.3 %"), (0.000162, "0.016 %"), (0.00096, "0.1 %"), (1.0, "100.0 %")],
)
def test_percent(fraction, shown):
    assert text.percent(fraction) == shown


@pytest.mark.parametrize(
    ("seconds", "shown"), [(0.42, "0.4 s"), (59.99, "60.0 s"), (61, "1 min 1 s"), (7260, "2 h 1 min")]
)
def test_duration(seconds, shown):
    assert text.duration(seconds) == shown


@pytest.mark.parametrize(
    ("value", "shown"), [(0.1234, "0.123 ms"), (7.891, "7.89 ms"), (78.91, "78.9 ms"), (7891.2, "7891 ms")]
)
def test_milliseconds(value, shown):
    assert text.milliseconds(value) == shown


@pytest.mark.parametrize(("value", "shown"), [(None, "not run"), (999, "999 B"), (88_202_656, "88.20 MB")])
def test_size(value, shown):
    assert text.size(value) == shown


def test_one_line_drops_what_a_terminal_or_xml_cannot_show():
    assert text.one_line("a\n\tb\x1b[31m\x00 c\u202e") == "a b [31m c"


def test_shorten_keeps_short_text_and_marks_cut_text():
    assert text.shorten("abc", 3) == "abc"
    assert text.shorten("abc def", 5) == "abc…"


@pytest.mark.parametrize(
    ("plain", "escaped"),
    [
        ("deit_small_patch16_224", "deit_small_patch16_224"),
        ("_a_ *b* `c`", "\\_a\\_ \\*b\\* \\`c\\`"),
        ("<b> & [x](y) | ~z~", "&lt;b&gt; &amp; \\[x\\](y) \\| \\~z\\~"),
        ("# title", "\\# title"),
        ("- item", "\\- item"),
        ("-", "-"),
        ("a\nb", "a b"),
    ],
)
def test_escape_markdown(plain, escaped):
    assert text.escape_markdown(plain) == escaped
