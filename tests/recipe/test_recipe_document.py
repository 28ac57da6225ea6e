"""Reading one YAML file: values, positions, and everything that is refused."""

from __future__ import annotations

import math
import time
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from usdcore.recipe.document import MAX_DEPTH, MAX_VALUES, Allowance, parse
from usdcore.recipe.emit import emit
from usdcore.recipe.problems import Problem, RecipeError
from usdcore.recipe.tree import find, plain


def read(text: str) -> Any:
    problems: list[Problem] = []
    value = plain(parse(text, "x.yaml", problems))
    assert problems == []
    return value


def mistakes(text: str) -> list[str]:
    problems: list[Problem] = []
    try:
        parse(text, "x.yaml", problems)
    except RecipeError as error:
        return [str(problem) for problem in error.problems]
    return [str(problem) for problem in problems]


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1e-3", 1e-3),
        ("5E4", 5e4),
        (".5", 0.5),
        ("-1.", -1.0),
        ("1.0e-4", 1e-4),
        ("no", "no"),
        ("yes", "yes"),
        ("on", "on"),
        ("y", "y"),
        ("true", True),
        ("False", False),
        ("null", None),
        ("~", None),
        ("", None),
        ("'1'", "1"),
        ('"true"', "true"),
        ("1_000", "1_000"),
        ("12:30", "12:30"),
        ("2026-01-01", "2026-01-01"),
        ("010", 10),
        ("0x10", 16),
        ("0o10", 8),
        ("+3", 3),
        ("-.inf", -math.inf),
        ("9" * 50, float("9" * 50)),
        ("|-\n  a\n  b", "a\nb"),
    ],
)
def test_scalars_follow_the_core_schema(text: str, value: object) -> None:
    read_value = read(f"a: {text}\n")["a"]
    assert read_value == value
    assert type(read_value) is type(value)


def test_positions_are_those_of_keys_and_items() -> None:
    root = parse("a:\n  b: 1\n  c: [x, {d: 2}]\n", "x.yaml", [])
    places = {path: find(root, path) for path in (("a",), ("a", "b"), ("a", "c", 1), ("a", "c", 1, "d"))}
    assert {path: str(node.origin) for path, node in places.items() if node} == {
        ("a",): "x.yaml:1:1",
        ("a", "b"): "x.yaml:2:3",
        ("a", "c", 1): "x.yaml:3:10",
        ("a", "c", 1, "d"): "x.yaml:3:11",
    }


def test_aliases_stand_for_their_anchors() -> None:
    assert read("a: &x {b: 1}\nc: *x\n") == {"a": {"b": 1}, "c": {"b": 1}}


@pytest.mark.parametrize(
    ("text", "mistake"),
    [
        (
            "a: !!python/object/apply:os.system [ls]",
            "x.yaml:1:4 a: the tag tag:yaml.org,2002:python/object/apply:os.system is not allowed; "
            "write the plain value",
        ),
        ("a: !!str 5", "x.yaml:1:4 a: the tag tag:yaml.org,2002:str is not allowed; write the plain value"),
        ("a: !x {b: 1}", "x.yaml:1:4 a: the tag !x is not allowed; write the plain value"),
        ("a: 1\nb: 2\na: 3", "x.yaml:3:1 a: the key is here twice (first in line 1); remove one"),
        ("a: {b: 1, b: 1}", "x.yaml:1:11 a.b: the key is here twice (first in line 1); remove one"),
        ("a: [{1: 2}]", "x.yaml:1:6 a[0]: the key '1' is not a string; put it in quotes"),
        ("? [a]\n: 2", "x.yaml:1:3: the key is not a string; put it in quotes"),
        (
            "a: &x {b: 1}\nc: {<<: *x}",
            "x.yaml:2:5 c: merge keys (<<) are not allowed; use extends, or write the keys out",
        ),
        ("a: *x", "x.yaml:1:4 a: the alias *x has no anchor above it; define &x first"),
        ("a: &x [*x]", "x.yaml:1:8 a[0]: the alias *x stands inside its own anchor; write the value out"),
        ("a: 1\n---\nb: 2", "x.yaml:2:1: a second document starts here; a recipe is one document, remove the '---'"),
        (
            "a: [1, 2",
            "x.yaml:1:9: not YAML: expected ',' or ']', but got '<stream end>'; mend the line, or one just above it",
        ),
        ("a: b: c", "x.yaml:1:5: not YAML: mapping values are not allowed here; mend the line, or one just above it"),
        ('a: "\\ud800"', "x.yaml:1:4 a: half of a surrogate pair is no character; write the character itself"),
    ],
)
def test_what_is_refused_says_where(text: str, mistake: str) -> None:
    assert mistakes(text) == [mistake]


def test_characters_that_no_text_has_are_refused() -> None:
    (mistake,) = mistakes("a: \x07")
    assert mistake == (
        "x.yaml:1:4: not YAML: the character U+0007 can't stand in text; remove it, or write it as an escape"
    )


def test_a_tab_is_called_a_tab() -> None:
    (mistake,) = mistakes("a:\n\tb: 1\n")
    assert mistake == "x.yaml:2:1: not YAML: a tab where only spaces may stand; indent with spaces"


def test_texts_and_overrides_share_what_one_recipe_may_take() -> None:
    allowance = Allowance(values=5)
    parse("{a: 1}", "x.yaml", [], allowance)
    assert allowance.values == 2
    with pytest.raises(RecipeError, match="more than"):
        parse("{b: 1}", "y.yaml", [], allowance)


def test_all_mistakes_of_a_file_come_at_once() -> None:
    assert len(mistakes("a: !x 1\na: 2\nb: {1: 2}\n")) == 3


def test_a_bomb_of_aliases_is_refused_at_once() -> None:
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x, x]"]
    lines += [f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 10)}]" for i in range(1, 12)]
    start = time.process_time()
    (mistake,) = mistakes("\n".join(lines))
    assert f"more than {MAX_VALUES} values, with aliases written out" in mistake
    assert time.process_time() - start < 2


@pytest.mark.parametrize("text", ["[" * 100_000, "{" * 100_000, "- " * 100_000, "? " * 100_000])
def test_deep_nesting_is_refused_at_once(text: str) -> None:
    start = time.process_time()
    (mistake,) = mistakes(text)
    assert mistake.endswith(f"nested deeper than {MAX_DEPTH} levels; a recipe is far flatter")
    assert time.process_time() - start < 2


SCALARS = st.none() | st.booleans() | st.integers(-(10**12), 10**12) | st.floats(allow_nan=False) | st.text()
VALUES = st.recursive(
    SCALARS, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4), max_leaves=12
)


@given(st.dictionaries(st.text(), VALUES, max_size=5))
def test_what_is_written_reads_the_same(value: dict[str, Any]) -> None:
    assert read(emit(value) or "{}") == value


@given(st.dictionaries(st.text(), VALUES, max_size=5))
def test_comments_change_nothing(value: dict[str, Any]) -> None:
    assert read(emit(value, lambda path: "a # comment") or "{}") == value
