"""What messages are made of."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from usdcore.errors import brief, nearest, printable


def test_a_near_name_is_offered_else_all_or_some() -> None:
    assert nearest("sed", ["seed", "name"]) == "did you mean 'seed'?"
    assert nearest("x", ["b", "a"]) == "valid: a, b"
    assert nearest("x", []) == "none is installed"
    assert nearest("x", [f"name{i:02}" for i in range(20)]).endswith("name11 and 8 more")


def test_what_is_endless_resembles_nothing() -> None:
    assert nearest("seed" * 100_000, ["seed"]) == "valid: seed"


def test_what_no_terminal_should_get_is_escaped() -> None:
    assert printable("a b\u00e9") == "a b\u00e9"
    assert printable("a\n\x1b[31m\u202e\udcff") == r"a\n\x1b[31m\u202e\udcff"


@given(st.text())
def test_brief_is_printable_and_short(text: str) -> None:
    assert brief(text, 10).isprintable()
    assert len(brief(text, 10)) <= 10 * len("\\U0010ffff") + 3
