"""The texts of mistakes are a feature: golden."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from usdcore.errors import UsdcoreError
from usdcore.recipe import RecipeError, load_recipe

if TYPE_CHECKING:
    from collections.abc import Callable

MANY = """\
name: my run
model: {name: vit, num_classes: 0, pretrained: no, wieghts: a}
data: {source: toys, input_size: 32}
budget:
  params: 1.5
  macs: 0.5
  scope: batches
seed: -1
device: gpu
train:
  lr: fast
  momentum: .nan
  ema: 1
phases:
  - name: search
    epocs: 3
    strategies:
      - {use: prune, ratio: 0.5, heads: 1, noise: [1, 2, 3], split: {use: halves, least: 0}}
      - use: prun
      - use: distill
        alpha: 0.1
      - {ratio: 0.5}
      - 7
  - name: search
    epochs: "3"
    train: {lr: 0, sched: cos, warm: 1}
    strategies: distill
evaluate: {batch_sizes: [1, big, 0], dial: 0.5}
controls: [wide]
latency: 3
sede: 3
"""

FAILED = (
    " (plugins that failed to load and may have had it: broken of broken-dist (ModuleNotFoundError: No module named "
    "'absent'))"
)

TEXTS = [
    "34 mistakes",
    "x.yaml:1:1 name: 'my run' can't name a file; use letters, digits, '.', '_' and '-', with a letter or digit first",
    "x.yaml:2:20 model.num_classes: 0 is too small; use a number at least 1",
    "x.yaml:2:36 model.pretrained: 'no' is not true or false; write false",
    "x.yaml:2:52 model.wieghts: unknown key; did you mean 'weights'?",
    "x.yaml:3:8 data.source: no data source is named 'toys'; did you mean 'toy'?" + FAILED,
    "x.yaml:4:1 budget.batch_size: the key is missing; add it (images that share a decision where the scope is batch; "
    "the budget is promised for this size)",
    "x.yaml:5:3 budget.params: 1.5 is too large; use a number at most 1",
    "x.yaml:7:3 budget.scope: 'batches' is not a choice here; did you mean 'batch'?",
    "x.yaml:8:1 seed: -1 is too small; use a number at least 0",
    "x.yaml:9:1 device: 'gpu' is not a choice here; did you mean 'cpu'?",
    "x.yaml:11:3 train.lr: 'fast' is not a number; write a number such as 1.0e-4",
    "x.yaml:12:3 train.momentum: .nan is not a finite number; write a number such as 1.0e-4",
    "x.yaml:13:3 train.ema: 1 is too large; use a number less than 1",
    "x.yaml:15:5 phases[0].epochs: the key is missing; add it (passes over the training images)",
    "x.yaml:16:5 phases[0].epocs: unknown key; did you mean 'epochs'?",
    "x.yaml:18:34 phases[0].strategies[0].heads: 1 is not true or false; write true",
    "x.yaml:18:44 phases[0].strategies[0].noise: [1, 2, 3] has 3 items; give at most 2",
    "x.yaml:18:83 phases[0].strategies[0].split.least: 0 is too small; use a number at least 1",
    "x.yaml:19:9 phases[0].strategies[1].use: no strategy is named 'prun'; did you mean 'prune'?" + FAILED,
    "x.yaml:21:9 phases[0].strategies[2].alpha: unknown key; valid: use",
    "x.yaml:22:9 phases[0].strategies[3].use: the key is missing; add it, with the name of a strategy: distill, prune",
    "x.yaml:23:9 phases[0].strategies[4]: 7 is not a strategy; write its name, or a mapping with the key use",
    "x.yaml:24:5 phases[1].name: an earlier phase is named 'search'; choose another name",
    "x.yaml:25:5 phases[1].epochs: '3' is not an integer; write 3 without quotes",
    "x.yaml:26:13 phases[1].train.lr: 0 is too small; use a number greater than 0",
    "x.yaml:26:20 phases[1].train.sched: 'cos' is not a choice here; did you mean 'cosine'?",
    "x.yaml:26:32 phases[1].train.warm: unknown key; did you mean 'warmup_lr'?",
    "x.yaml:27:5 phases[1].strategies: 'distill' is not a list; write a list such as [a, b]",
    "x.yaml:28:29 evaluate.batch_sizes[1]: 'big' is not an integer; write a whole number",
    "x.yaml:28:34 evaluate.batch_sizes[2]: 0 is too small; use a number at least 1",
    "x.yaml:28:38 evaluate.dial: 0.5 is not a list; write a list such as [a, b]",
    "x.yaml:29:12 controls[0]: 'wide' is not a choice here; valid: narrow, random",
    "x.yaml:30:1 latency: 3 is not a mapping; write keys with values",
    "x.yaml:31:1 sede: unknown key; did you mean 'seed'?",
]


def mistakes(name: str, *overrides: str) -> list[str]:
    with pytest.raises(RecipeError) as caught:
        load_recipe(name, overrides)
    assert isinstance(caught.value, UsdcoreError)
    assert "pydantic" not in str(caught.value)
    return [str(problem) for problem in caught.value.problems]


def test_all_mistakes_come_at_once_in_the_files_order(write: Callable[..., str]) -> None:
    with pytest.raises(RecipeError) as caught:
        load_recipe(write(MANY))
    assert str(caught.value).splitlines() == TEXTS


def test_a_missing_section_is_reported_at_the_top(write: Callable[..., str]) -> None:
    assert mistakes(write("# a recipe\nname: a\n")) == [
        "x.yaml:2:1 model: the key is missing; add it (the dense model)",
        "x.yaml:2:1 data: the key is missing; add it (the images: a mapping with `source` and that source's options)",
        "x.yaml:2:1 budget: the key is missing; add it (what the compressed model may cost)",
        "x.yaml:2:1 seed: the key is missing; add it (seeds everything random)",
        "x.yaml:2:1 train: the key is missing; add it (how to train)",
        "x.yaml:2:1 phases: the key is missing; add it (the run, in order)",
    ]


@pytest.mark.parametrize(
    ("line", "mistake"),
    [
        ("phases: []", "phases: [] has 0 items; give at least 1"),
        ("phases: 3", "phases: 3 is not a list; write a list such as [a, b]"),
        ("phases: {name: a}", "phases: a mapping is not a list; write a list such as [a, b]"),
        ("phases: [a]", "phases[0]: 'a' is not a mapping; write a mapping with name and epochs"),
        (
            "budget: {batch_size: 1, macs: null}",
            "budget.params: the budget has no target; give macs, latency or params",
        ),
        (
            "budget: {batch_size: 1, macs: 0.5, params: 0.5}",
            "budget.params: the budget has several targets; give one of macs, latency and params",
        ),
        ("budget: {batch_size: true, macs: 0.5}", "budget.batch_size: true is not an integer; write a whole number"),
        (
            "model: {name: a, num_classes: 2, pretrained: true, weights: b}",
            "model: pretrained: true and weights both say where to start from; give one",
        ),
        ("seed: 4294967296", "seed: 4294967296 is too large; use a number less than 4294967296"),
        ("train: {lr: .inf}", "train.lr: .inf is not a finite number; write a number such as 1.0e-4"),
        ("model: {name: '', num_classes: 2}", "model.name: '' is too short; give at least 1 characters"),
    ],
)
def test_sections_in_words(write: Callable[..., str], base: str, line: str, mistake: str) -> None:
    assert mistakes(write(f"extends: {base}\n{line}\n"))[0].split(" ", 1)[1] == mistake


@pytest.mark.parametrize(
    ("options", "mistake"),
    [
        ("ratio: 0", "x.yaml:5:31 phases[0].strategies[0].ratio: 0 is too small; use a number greater than 0"),
        ("heads: true", "x.yaml:5:18 phases[0].strategies[0].ratio: the key is missing; add it (share to keep)"),
        (
            "ratio: 0.5, split: third",
            "x.yaml:5:43 phases[0].strategies[0].split: 'third' is not a choice here; valid: none; or: no split is "
            "named 'third'; valid: halves (plugins that failed to load and may have had it: broken of broken-dist "
            "(ModuleNotFoundError: No module named 'absent'))",
        ),
        (
            "ratio: 0.5, splits: [{use: halves, leest: 2}]",
            "x.yaml:5:52 phases[0].strategies[0].splits[0].least: the key is missing; add it (smallest part)",
        ),
        ("ratio: 0.5, heads: false", "x.yaml:5:18 phases[0].strategies[0]: nothing to prune: set heads or split"),
    ],
)
def test_options_of_plugins_in_words(write: Callable[..., str], base: str, options: str, mistake: str) -> None:
    text = f"extends: {base}\nphases:\n  - name: a\n    epochs: 1\n    strategies: [{{use: prune, {options}}}]\n"
    assert mistakes(write(text))[0] == mistake


def test_mistakes_of_yaml_and_of_overrides_come_with_the_others(write: Callable[..., str], base: str) -> None:
    text = f"extends: {base}\nseed: !x 1\nseed: a\n"
    assert mistakes(write(text), "device=tpu", "nothing") == [
        "x.yaml:2:7 seed: the tag !x is not allowed; write the plain value",
        "x.yaml:3:1 seed: the key is here twice (first in line 2); remove one",
        "x.yaml:3:1 seed: 'a' is not an integer; write a whole number",
        "--set device=tpu device: 'tpu' is not a choice here; did you mean 'cpu'?",
        "--set nothing: not of the form a.b=value; name a key, with dots, and its new value",
    ]


def test_long_values_are_cut(write: Callable[..., str], base: str) -> None:
    (mistake,) = mistakes(base, f"seed={'x' * 500}")
    assert f"seed: '{'x' * 59}... is not an integer" in mistake
