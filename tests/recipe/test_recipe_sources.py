"""Several files and overrides become one tree."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from usdcore.recipe import RecipeError, load_recipe, read_recipe
from usdcore.recipe.document import MAX_BYTES
from usdcore.recipe.sources import apply_overrides
from usdcore.recipe.tree import Node, Origin, find, merge, plain

if TYPE_CHECKING:
    from collections.abc import Callable

    from usdcore.recipe.problems import Problem

    Write = Callable[..., str]

HERE = Origin("x.yaml", 1, 1)

KEYS = st.sampled_from("abc")
LEAVES = st.integers(0, 3) | st.lists(st.integers(0, 3), max_size=2)
TREES = st.recursive(
    st.dictionaries(KEYS, LEAVES, max_size=3), lambda inner: st.dictionaries(KEYS, LEAVES | inner, max_size=3)
)
TREES_WITH_NULLS = st.recursive(
    st.dictionaries(KEYS, LEAVES | st.none(), max_size=3),
    lambda inner: st.dictionaries(KEYS, LEAVES | st.none() | inner, max_size=3),
)


def node(value: Any) -> Node:
    if isinstance(value, dict):
        return Node({key: node(inner) for key, inner in value.items()}, HERE)
    return Node([node(inner) for inner in value] if isinstance(value, list) else value, HERE)


def merged(*values: Any) -> Any:
    result = node(values[0])
    for value in values[1:]:
        result = merge(result, node(value))
    return plain(result)


@given(TREES_WITH_NULLS)
def test_merging_nothing_changes_nothing(tree: dict[str, Any]) -> None:
    assert merged(tree, {}) == tree


@given(TREES)
def test_merging_into_nothing_gives_the_same(tree: dict[str, Any]) -> None:
    assert merged({}, tree) == tree


@given(TREES, TREES)
def test_the_later_wins(early: dict[str, Any], late: dict[str, Any]) -> None:
    result = merged(early, late)
    assert result.keys() == early.keys() | late.keys()
    for key, value in late.items():
        old = early.get(key)
        both = isinstance(value, dict) and isinstance(old, dict)
        assert result[key] == (merged(old, value) if both else value)
    assert all(result[key] == early[key] for key in early.keys() - late.keys())


@given(TREES, TREES, TREES)
def test_grouping_does_not_matter(a: dict[str, Any], b: dict[str, Any], c: dict[str, Any]) -> None:
    def mappings(tree: Any, path: tuple[str, ...] = ()) -> set[tuple[str, ...]]:
        inner = [mappings(value, (*path, key)) for key, value in tree.items() if isinstance(value, dict)]
        return {path}.union(*inner)

    def others(tree: Any, path: tuple[str, ...] = ()) -> set[tuple[str, ...]]:
        deeper = [others(value, (*path, key)) for key, value in tree.items() if isinstance(value, dict)]
        return {(*path, key) for key, value in tree.items() if not isinstance(value, dict)}.union(*deeper)

    trees = (a, b, c)
    maps, values = set().union(*map(mappings, trees)), set().union(*map(others, trees))
    if not maps & values:  # where a value stands between two mappings, it cuts off the first
        assert merged(merged(a, b), c) == merged(a, merged(b, c))


@given(TREES, KEYS)
def test_null_deletes(tree: dict[str, Any], key: str) -> None:
    assert merged(tree, {key: None}) == {k: v for k, v in tree.items() if k != key}


@given(TREES, TREES_WITH_NULLS)
def test_no_null_survives_but_the_bases_own(base: dict[str, Any], late: dict[str, Any]) -> None:
    def nulls(value: Any) -> bool:
        return value is None or (isinstance(value, dict) and any(nulls(inner) for inner in value.values()))

    assert not nulls(merged(base, late))


def test_a_file_is_merged_over_what_it_extends(write: Write, base: str) -> None:
    write("train: {lr: 0.5, opt: sgd}\nmodel: {kwargs: {a: 1}}\n", "deep/er.yaml")
    write("extends: ../deep/er.yaml\ntrain: {opt: lion}\nevaluate: {dial: [0.3, 0.4]}\n", "deep2/more.yaml")
    write(f"extends: [{base}, deep2/more.yaml]\nseed: 7\nevaluate: {{dial: [0.2]}}\n")
    loaded = read_recipe("x.yaml")
    recipe = loaded.recipe
    assert (recipe.train.lr, recipe.train.opt, recipe.seed, recipe.evaluate.dial) == (0.5, "lion", 7, (0.2,))
    assert recipe.model.kwargs == {"a": 1}
    origins = {path: find(loaded.written, path) for path in (("train", "lr"), ("train", "opt"), ("seed",), ("name",))}
    assert {path: str(found.origin) for path, found in origins.items() if found} == {
        ("train", "lr"): "deep/er.yaml:1:9",
        ("train", "opt"): "deep2/more.yaml:2:9",
        ("seed",): "x.yaml:2:1",
        ("name",): "base.yaml:1:1",
    }


def test_null_takes_a_parents_value_back(write: Write, base: str) -> None:
    write("train: {ema: 0.9}\n", "ema.yaml")
    write(f"extends: [{base}, ema.yaml]\ntrain: {{ema: null}}\nbudget: {{macs: null, params: 0.4}}\n")
    recipe = load_recipe("x.yaml")
    assert (recipe.train.ema, recipe.budget.metric, recipe.budget.target) == (None, "params", 0.4)


@pytest.mark.parametrize(
    ("files", "mistake"),
    [
        ({"x": "extends: x.yaml"}, "x.yaml:1:1 extends: the recipe extends itself: x.yaml -> x.yaml"),
        (
            {"x": "extends: a.yaml", "a": "extends: [b.yaml]", "b": "extends: ./a.yaml"},
            "b.yaml:1:1 extends: the recipe extends itself: a.yaml -> b.yaml -> a.yaml",
        ),
        (
            {"x": "a: 1\nextends: bas.yaml", "base": ""},
            "x.yaml:2:1 extends: there is no file bas.yaml; did you mean 'base.yaml'",
        ),
        ({"x": "extends: [a.yaml, 3]", "a": "seed: 1"}, "x.yaml:1:19 extends: not the name of a file"),
        ({"x": "extends:"}, "x.yaml:1:1 extends: not the name of a file"),
        ({"x": "- a"}, "x.yaml:1:1: not a mapping of keys; a recipe starts with lines such as 'name: my-run'"),
        ({"x": "# nothing"}, "x.yaml:1:1: the file is empty"),
        ({"x": "extends: a.yaml", "a": "b: ["}, "a.yaml:1:5: not YAML"),
    ],
)
def test_files_that_cannot_be_merged_say_why(write: Write, files: dict[str, str], mistake: str) -> None:
    for name, text in files.items():
        write(text, f"{name}.yaml")
    with pytest.raises(RecipeError) as caught:
        load_recipe("x.yaml")
    assert str(caught.value).startswith(mistake)


def test_many_files_by_extends_are_refused(write: Write) -> None:
    for i in range(12):
        write(f"extends: [{i + 1}.yaml, {i + 1}.yaml]", f"{i}.yaml")
    write("seed: 1", "12.yaml")
    with pytest.raises(RecipeError, match="more than 64 files by extends"):
        load_recipe("0.yaml")


@pytest.mark.parametrize(
    ("content", "mistake"),
    [
        (b"#" * (MAX_BYTES + 1), r"x.yaml: larger than 131072 bytes; this is no recipe"),
        (b"a: 1\nb: \xff", r"x.yaml:2:1: not UTF-8 text; save the file as UTF-8"),
    ],
)
def test_files_that_are_no_recipes_are_refused(write: Write, content: bytes, mistake: str) -> None:
    with pytest.raises(RecipeError) as caught:
        load_recipe(write(content))
    assert str(caught.value) == mistake


def test_a_file_that_is_not_there(base: str) -> None:
    with pytest.raises(RecipeError) as caught:
        load_recipe("basis.yaml")
    assert str(caught.value) == "basis.yaml: there is no file basis.yaml; did you mean 'base.yaml'?"
    with pytest.raises(RecipeError, match="is a folder"):
        load_recipe(".")


def test_a_byte_order_mark_is_no_part_of_the_text(write: Write, base: str) -> None:
    assert load_recipe(write(b"\xef\xbb\xbfextends: base.yaml")) == load_recipe(base)


@pytest.mark.parametrize(
    ("override", "path", "value"),
    [
        ("seed=3", ("seed",), 3),
        ("train.lr=1e-2", ("train", "lr"), 1e-2),
        ("train.opt=no", ("train", "opt"), "no"),
        ("train.ema=null", ("train", "ema"), None),
        ("model.kwargs.deep.er=[1, {a: 2}]", ("model", "kwargs", "deep", "er"), [1, {"a": 2}]),
        ("phases.0.epochs=7", ("phases", 0, "epochs"), 7),
        ("phases.0.strategies.1=distill", ("phases", 0, "strategies", 1), "distill"),
        ("phases.1.name=more", ("phases", 1, "name"), "more"),
        ("phases.first.epochs=7", ("phases", 0, "epochs"), 7),
        ("phases.first.strategies.x.rate=2", ("phases", 0, "strategies", 0, "rate"), 2),
        ("phases.first.strategies.x=y", ("phases", 0, "strategies", 0), "y"),
        ("a=b=c", ("a",), "b=c"),
    ],
)
def test_an_override_replaces_one_value(override: str, path: tuple[str | int, ...], value: object) -> None:
    before: dict[str, Any] = {
        "seed": 0,
        "train": {"lr": 1.0, "opt": "sgd"},
        "phases": [{"name": "first", "epochs": 1, "strategies": ["x"]}],
    }
    problems: list[Problem] = []
    found = find(apply_overrides(node(before), [override], problems), path)
    assert problems == []
    assert found is not None
    assert (plain(found), str(found.origin)) == (value, f"--set {override}")


def test_later_overrides_win_and_the_file_is_not_touched(base: str) -> None:
    assert load_recipe(base, ["seed=1", "seed=2"]).seed == 2
    assert load_recipe(base).seed == 0


@pytest.mark.parametrize(
    ("override", "mistake"),
    [
        ("seed", "--set seed: not of the form a.b=value; name a key, with dots, and its new value"),
        ("a..b=1", "--set a..b=1: not of the form a.b=value; name a key, with dots, and its new value"),
        (".".join("a" * 40) + "=1", "not of the form a.b=value; name a key, with dots, and its new value"),
        ("phases.3.epochs=1", "phases.3: phases is a list of 1; use 0 to 0, or 1 to append"),
        ("phases.first=1", "phases.first: phases has no 'first'; valid: search"),
        ("seed.x=1", "seed.x: seed is the value 0, not a mapping; set seed as a whole"),
        ("extends=a", "extends: extends can't be overridden; write a file that extends others"),
        (
            "seed=[",
            "seed: not YAML: expected the node content, but found '<stream end>'; mend the line, or one just above it",
        ),
        ("seed=!!int 3", "seed: the tag tag:yaml.org,2002:int is not allowed; write the plain value"),
        ("sed=3", "sed: unknown key; did you mean 'seed'?"),
        ("seed=x", "seed: 'x' is not an integer; write a whole number"),
    ],
)
def test_an_override_that_does_not_fit_says_why(base: str, override: str, mistake: str) -> None:
    with pytest.raises(RecipeError) as caught:
        load_recipe(base, [override])
    assert str(caught.value).startswith(f"--set {override}")
    assert str(caught.value).endswith(mistake)
