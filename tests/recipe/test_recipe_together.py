"""What no section shows by itself: mistakes between sections, and hints about what was meant."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from types import SimpleNamespace

import pytest
from pydantic import Field

from usdcore.hooks import Register, build_registry, hookimpl, using
from usdcore.hooks.config import Beside
from usdcore.recipe import DataConfig, PluginConfig, RecipeError, Use, load_recipe
from usdcore.recipe.problems import MOST_LINES

Split = Use["split"]


class Groups(PluginConfig):
    size: int = 4

    def mistakes(self, beside: Beside) -> Iterator[tuple[str, str]]:
        if self.size > beside.batch_size:
            yield "size", f"more than {beside.batch_size}; use less"


class Learner(PluginConfig):
    split: Split = Field(default="groups", validate_default=True)
    splits: list[Split] = Field(default_factory=list)
    tau: float = Field(default=1.0, json_schema_extra={"mutable": True})

    def mistakes(self, beside: Beside) -> Iterator[tuple[str, str]]:
        if 0 < beside.epochs < 3:
            yield "", f"{beside.epochs} epochs are few; give more"


class Known(DataConfig):
    def known_classes(self) -> int:
        return 10


@hookimpl
def usdcore_register(register: Register) -> None:
    register.data_source(name="known", config=Known, implementation="a:B", summary="s")
    register.split(name="groups", config=Groups, implementation="a:B", summary="s")
    register.strategy(name="learner", config=Learner, implementation="a:B", summary="s")


@pytest.fixture(autouse=True)
def _own() -> Iterator[None]:
    with using(build_registry(SimpleNamespace(__name__="own", usdcore_register=usdcore_register))):
        yield


TEXT = """\
name: a
model: {name: vit, num_classes: 10}
data: {source: known, input_size: 32, batch_size: 8}
budget: {macs: 0.5, batch_size: 8}
seed: 0
train: {lr: 1e-3, warmup_epochs: 1}
phases:
  - {name: search, epochs: 2, strategies: [{use: learner, tau: 2}]}
  - {name: finetune, epochs: 1, strategies: [learner]}
"""


def mistakes(write: Callable[..., str], *overrides: str, text: str = TEXT) -> list[str]:
    with pytest.raises(RecipeError) as caught:
        load_recipe(write(text), overrides)
    return [f"{'.'.join(map(str, problem.path))}: {problem.text}" for problem in caught.value.problems]


def test_the_good_one(write: Callable[..., str]) -> None:
    assert load_recipe(write(TEXT)).phases[1].epochs == 1


def test_a_plugin_says_what_does_not_fit_wherever_it_stands(write: Callable[..., str]) -> None:
    options = (
        "phases.0.strategies.0={use: learner, split: {use: groups, size: 9}, splits: [groups, {use: groups, size: 10}]}"
    )
    assert mistakes(write, options) == [
        "phases.0.strategies.0.split.size: more than 8; use less",
        "phases.0.strategies.0.splits.1.size: more than 8; use less",
    ]


def test_it_is_told_the_epochs_of_all_its_phases_and_asked_once(write: Callable[..., str]) -> None:
    assert mistakes(write, "phases.0.epochs=1") == ["phases.0.strategies.0: 2 epochs are few; give more"]


def test_they_come_with_the_mistakes_of_the_sections(write: Callable[..., str]) -> None:
    found = mistakes(write, "model.num_classes=9", "seed=x", "phases.1.train.warmup_epochs=5", "budget.macs=2")
    assert found == [
        "model.num_classes: the data has 10 classes (known), and this is 9; set model.num_classes to 10",
        "seed: 'x' is not an integer; write a whole number",
        "phases.1.train.warmup_epochs: the warm-up of 5 epochs is longer than the phase 'finetune', which has 1; give "
        "this phase train: {warmup_epochs: N} with N at most 1",
        "budget.macs: 2 is too large; use a number at most 1 (2 % is 0.02)",
    ]


@pytest.mark.parametrize(
    ("override", "place"),
    [
        ("train.min_lr=1", "train.min_lr"),
        ("phases.1.train={min_lr: 1}", "phases.1.train.min_lr"),
        ("train.warmup_lr=1", "train.warmup_lr"),
        ("phases.0.name=fine-tune", "phases.0"),
        ("phases.1.name=search-again", "phases.1"),
    ],
)
def test_where(write: Callable[..., str], override: str, place: str) -> None:
    text = TEXT.replace("finetune", "search").replace("name: search, epochs: 2", "name: a, epochs: 2")
    again = "phases.0.epochs=3"
    if "again" in override:
        text = text.replace(", strategies: [learner]", "")
    assert [found.split(":")[0] for found in mistakes(write, override, again, text=text)] == [place]


@pytest.mark.parametrize(
    "good",
    [
        ("train.sched=none", "train.min_lr=1"),
        ("phases.1.epochs=0", "phases.1.train={warmup_epochs: 9}", "phases.0.epochs=3"),
        ("budget.macs=1", "phases.0.strategies=[]", "phases.1.strategies=[]"),
        ("phases.0={name: finetune, epochs: 2}", "phases.1={name: search, epochs: 3, strategies: [learner]}"),
        ("data.batch_size=9",),
    ],
)
def test_what_is_no_mistake(write: Callable[..., str], good: tuple[str, ...]) -> None:
    assert load_recipe(write(TEXT), good)


@pytest.mark.parametrize(
    ("override", "text"),
    [
        ("train.lr='1e-3'", "'1e-3' is not a number; write 1e-3 without quotes"),
        ("train.lr=1_000.5", "'1_000.5' is not a number; write 1000.5"),
        ("train.lr=5 %", "'5 %' is not a number; write 0.05, a fraction"),
        ("train.lr='.inf'", "'.inf' is not a number; write a number such as 1.0e-4"),
        ("train.lr='true'", "'true' is not a number; write a number such as 1.0e-4"),
        ("train.lr=true", "true is not a number; write a number such as 1.0e-4"),
        ("seed=1e1", "10.0 is not an integer; write 10"),
        ("seed=1.5", "1.5 is not an integer; write a whole number"),
        ("seed=50%", "'50%' is not an integer; write a whole number"),
        ("model.pretrained=Off", "'Off' is not true or false; write false"),
        ("model.pretrained=2", "2 is not true or false; write true or false"),
        ("train=x", "'x' is not a mapping; write a mapping with lr"),
        ("train.learning_rate=1", "unknown key; did you mean 'lr'?"),
        ("train.macs=1", "unknown key here; put it in budget"),
        ("train.seed=1", "unknown key here; put it in the top of the recipe"),
        ("model.epochs=1", "unknown key here; put it in a phase"),
        ("seed=-0.5", "-0.5 is not an integer; write a whole number"),
    ],
)
def test_what_was_meant(write: Callable[..., str], override: str, text: str) -> None:
    assert [found.split(": ", 1)[1] for found in mistakes(write, override)] == [text]


def test_a_name_of_another_kind(write: Callable[..., str]) -> None:
    (found,) = mistakes(write, "phases.0.strategies.0=groups", "phases.1.epochs=3")
    assert found.endswith("no strategy is named 'groups'; valid: learner ('groups' is a split)")


def test_nan_is_no_value_anywhere(write: Callable[..., str]) -> None:
    assert mistakes(write, "model.kwargs={a: [1, {b: .nan}]}") == [
        "model.kwargs.a.1.b: .nan is not a finite number; write a number, or remove the key"
    ]
    assert "phases.0.strategies.0.tau: .inf is not a finite number; write a number such as 1.0e-4" in mistakes(
        write, "phases.0.strategies.0.tau=.inf"
    )


def test_very_many_mistakes_are_counted_and_not_all_listed(write: Callable[..., str]) -> None:
    with pytest.raises(RecipeError) as caught:
        load_recipe(write(TEXT + "".join(f"k{i}: 1\n" for i in range(500))))
    lines = str(caught.value).split("\n")
    assert (len(caught.value.problems), len(lines)) == (500, MOST_LINES + 2)
    assert (lines[0], lines[-1]) == ("500 mistakes", "and 400 more; mend these first")


def test_what_could_not_be_read_again_is_refused(write: Callable[..., str]) -> None:
    phases = ", ".join(f"{{name: p{i}, epochs: 1, strategies: [learner]}}" for i in range(250))
    (found,) = mistakes(write, text=f"{TEXT[: TEXT.index('phases')]}phases: [{phases}]\n")
    assert "with its defaults written out, the recipe is larger than" in found
