"""A strategy named again in a later phase is the same object."""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING, Any

import pytest
from pydantic import ValidationError

from usdcore.hooks import registry
from usdcore.recipe import PhaseConfig, Recipe, RecipeError, load_recipe

if TYPE_CHECKING:
    from collections.abc import Callable


def phases(*strategies: list[Any]) -> list[dict[str, Any]]:
    return [{"name": f"p{i}", "epochs": 1, "strategies": listed} for i, listed in enumerate(strategies)]


def recipe(data: dict[str, Any], *strategies: list[Any]) -> Recipe:
    return Recipe.model_validate(data | {"phases": phases(*strategies)})


def test_what_a_later_phase_leaves_out_it_has_from_before(as_data: dict[str, Any]) -> None:
    first = {"use": "prune", "ratio": 0.5, "split": {"use": "halves", "least": 4}, "tau": 2.0}
    found = recipe(as_data, [first], [], ["prune"], [{"use": "prune", "tau": 0.5}], ["prune"])
    listed = [phase.strategies[0] for phase in found.phases if phase.strategies]
    assert [s.tau for s in listed] == [2.0, 2.0, 0.5, 0.5]  # type: ignore[attr-defined]
    assert all((s.ratio, s.split.least) == (0.5, 4) for s in listed)  # type: ignore[attr-defined]


def test_what_it_repeats_must_be_what_it_was(as_data: dict[str, Any]) -> None:
    first = {"use": "prune", "ratio": 0.5}
    assert recipe(as_data, [first], [{"use": "prune", "ratio": 0.5, "heads": True, "noise": (1, 0)}])
    with pytest.raises(ValidationError) as caught:
        recipe(
            as_data, [first], [{"use": "prune", "ratio": 0.4, "heads": True, "splits": [{"use": "halves", "least": 1}]}]
        )
    assert [error["loc"] for error in caught.value.errors()] == [
        ("phases", 1, "strategies", 0, "ratio"),
        ("phases", 1, "strategies", 0, "splits"),
    ]


def test_the_input_is_left_alone(as_data: dict[str, Any]) -> None:
    data = as_data | {"phases": phases([{"use": "prune", "ratio": 0.5}], ["prune"])}
    before = copy.deepcopy(data)
    Recipe.model_validate(data)
    assert data == before


def test_objects_go_the_same_way_as_files(as_data: dict[str, Any]) -> None:
    prune = registry().config("strategy", "prune")
    listed = (
        PhaseConfig(name="p0", epochs=1, strategies=(prune(ratio=0.5),)),
        PhaseConfig(name="p1", epochs=1, strategies=[{"use": "prune", "tau": 3.0, "ratio": 0.5}]),  # type: ignore[arg-type]
    )
    by_objects = Recipe(**(as_data | {"phases": listed}))
    assert by_objects == recipe(as_data, [{"use": "prune", "ratio": 0.5}], [{"use": "prune", "tau": 3.0}])


def test_mistakes_between_phases_come_with_those_inside_them(write: Callable[..., str], base: str) -> None:
    name = write(
        f"extends: {base}\n"
        "phases:\n"
        "  - {name: a, epochs: -1, strategies: [{use: prune, ratio: 0.5}, prune]}\n"
        "  - {name: a, epochs: 1, strategies: [{use: prune, ratio: 0.6, tau: hot}]}\n"
        "  - {name: c, epochs: 1, strategies: [{use: prune, ratio: 0.6, tau: 1}]}\n"
    )
    with pytest.raises(RecipeError) as caught:
        load_recipe(name)
    assert str(caught.value).splitlines() == [
        "5 mistakes",
        "x.yaml:3:15 phases[0].epochs: -1 is too small; use a number at least 0",
        "x.yaml:3:66 phases[0].strategies[1]: strategy 'prune' is already in this phase; name it once",
        "x.yaml:4:6 phases[1].name: an earlier phase is named 'a'; choose another name",
        "x.yaml:4:52 phases[1].strategies[0].ratio: prune was given another value in an earlier phase, and this option "
        "can't change between phases; leave it out here",
        "x.yaml:4:64 phases[1].strategies[0].tau: 'hot' is not a number; write a number such as 1.0e-4",
    ]


def test_an_inherited_mistake_is_reported_once(write: Callable[..., str], base: str) -> None:
    name = write(
        f"extends: {base}\n"
        "phases:\n"
        "  - {name: a, epochs: 1, strategies: [{use: prune, ratio: 5, heads: false}, {use: distill}]}\n"
        "  - {name: b, epochs: 1, strategies: [prune, {use: distill, alpha: 1}]}\n"
    )
    with pytest.raises(RecipeError) as caught:
        load_recipe(name)
    assert [problem.path for problem in caught.value.problems] == [
        ("phases", 0, "strategies", 0, "ratio"),
        ("phases", 1, "strategies", 1, "alpha"),
    ]


def test_a_phase_changes_some_training_keys(write: Callable[..., str], base: str) -> None:
    name = write(
        f"extends: {base}\n"
        "train: {lr: 0.1, ema: 0.9, opt: sgd}\n"
        "phases:\n"
        "  - {name: a, epochs: 1}\n"
        "  - {name: b, epochs: 1, train: {lr: 0.2, ema: null}, strategies: [distill]}\n"
    )
    found = load_recipe(name)
    assert found.train_for(found.phases[0]) == found.train
    changed = found.train_for(found.phases[1])
    assert (changed.lr, changed.ema, changed.opt) == (0.2, None, "sgd")
