"""Mistakes that no section shows by itself: what does not go together in one recipe."""

from __future__ import annotations

import functools
import math
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel, TypeAdapter, ValidationError
from pydantic_core import to_json

from usdcore.hooks.config import Beside, DataConfig, PluginConfig
from usdcore.hooks.loader import registry
from usdcore.recipe.phases import PhaseConfig
from usdcore.recipe.problems import Problem
from usdcore.recipe.schema import BudgetConfig, EvaluateConfig, ModelConfig, Recipe, SourceConfig
from usdcore.recipe.training import TrainConfig
from usdcore.recipe.tree import closest, find, plain

if TYPE_CHECKING:
    from collections.abc import Iterator

    from usdcore.recipe.tree import Node, Path

    Mistakes = Iterator[tuple[Path, str]]

_NAN = ".nan is not a finite number; write a number, or remove the key"
_SEARCH = re.compile(r"search", re.IGNORECASE)
_FINETUNE = re.compile(r"fine[-_. ]?tun", re.IGNORECASE)


@dataclass(frozen=True)
class Parts:
    """The sections of a recipe that are valid by themselves; None where one is not, and its own mistake is reported."""

    model: ModelConfig | None
    data: DataConfig | None
    budget: BudgetConfig | None
    train: TrainConfig | None
    phases: tuple[PhaseConfig | None, ...]
    evaluate: EvaluateConfig | None


def mistakes_together(written: Node, recipe: Recipe | None) -> list[Problem]:
    """What does not go together, as far as the sections are valid. `recipe`: None where one of them is not."""
    parts = _parts_of(recipe) if recipe is not None else _valid_parts(written)
    checks = (_classes, _warmups, _rates, _mixing, _strategies, _alone, _order, _options, _dial, _static)
    found = [(path, text) for check in checks for path, text in check(parts)]
    if recipe is not None:
        found += [(path, _NAN) for path in _undefined(written, ())]
    return [Problem(closest(written, path).origin, path, text) for path, text in found]


def _undefined(node: Node, path: Path) -> Iterator[Path]:
    """Every NaN that no option refused by itself: no two recipes with one would be equal."""
    if isinstance(node.value, dict | list):
        for key, inner in node.value.items() if isinstance(node.value, dict) else enumerate(node.value):
            yield from _undefined(inner, (*path, key))
    elif isinstance(node.value, float) and math.isnan(node.value):
        yield path


def _parts_of(recipe: Recipe) -> Parts:
    return Parts(recipe.model, recipe.data, recipe.budget, recipe.train, recipe.phases, recipe.evaluate)


def _valid_parts(written: Node) -> Parts:
    """Each section validated alone."""

    def valid(node: Node | None, kind: Any, default: Any = None) -> Any:
        if node is None:
            return default
        try:
            return _adapter(kind).validate_json(to_json(plain(node), inf_nan_mode="constants"), strict=True)
        except ValidationError:
            return None

    sections = {
        name: valid(find(written, (name,)), kind, default)
        for name, kind, default in (
            ("model", ModelConfig, None),
            ("budget", BudgetConfig, None),
            ("train", TrainConfig, None),
            ("evaluate", EvaluateConfig, EvaluateConfig()),
        )
    }
    data = valid(find(written, ("data",)), SourceConfig)
    listed = find(written, ("phases",))
    phases = listed.value if listed is not None and isinstance(listed.value, list) else []
    return Parts(data=data, phases=tuple(valid(phase, PhaseConfig) for phase in phases), **sections)


@functools.cache
def _adapter(kind: Any) -> TypeAdapter[Any]:
    return TypeAdapter(kind)


def _classes(parts: Parts) -> Mistakes:
    if parts.model is None or parts.data is None:
        return
    classes, wanted = parts.data.known_classes(), parts.model.num_classes
    if classes is not None and classes != wanted:
        yield (
            ("model", "num_classes"),
            f"the data has {classes} classes ({parts.data.source}), and this is {wanted}; set model.num_classes to "
            f"{classes}",
        )


def _trained(parts: Parts) -> Iterator[tuple[Path, PhaseConfig, TrainConfig]]:
    """Each phase that trains, with its place and its training options."""
    for i, phase in enumerate(parts.phases):
        if phase is not None and parts.train is not None and phase.epochs > 0:
            yield ("phases", i), phase, phase.training(parts.train)


def _at(place: Path, phase: PhaseConfig, key: str) -> Path:
    """Where a phase's training key is written: in the phase, or for the whole run."""
    return (*place, "train", key) if key in phase.train.model_fields_set else ("train", key)


def _warmups(parts: Parts) -> Mistakes:
    for place, phase, train in _trained(parts):
        if train.warmup_epochs > phase.epochs:
            yield (
                (*place, "train", "warmup_epochs") if "warmup_epochs" in phase.train.model_fields_set else place,
                f"the warm-up of {train.warmup_epochs} epochs is longer than the phase {phase.name!r}, which has "
                f"{phase.epochs}; give this phase train: {{warmup_epochs: N}} with N at most {phase.epochs}",
            )


def _rates(parts: Parts) -> Mistakes:
    """The learning rate starts, peaks and ends in this order. The same mistake of several phases is one."""
    found: dict[Path, str] = {}
    for place, phase, train in _trained(parts):
        if train.sched != "none" and train.min_lr > train.lr:
            text = f"{train.min_lr:g} is above the learning rate {train.lr:g} that falls to it; use less than lr"
            found.setdefault(_at(place, phase, "min_lr"), text)
        if train.warmup_epochs and train.warmup_lr > train.lr:
            text = f"{train.warmup_lr:g} is above the learning rate {train.lr:g} that rises from it; use less than lr"
            found.setdefault(_at(place, phase, "warmup_lr"), text)
    yield from found.items()


def _mixing(parts: Parts) -> Mistakes:
    """Mixup and cutmix pair a batch's images, so an odd batch would silently stay as it is: every one, here."""
    found: dict[Path, str] = {}
    if parts.data is not None and parts.data.batch_size % 2:
        for place, phase, train in _trained(parts):
            for key in ("mixup", "cutmix"):
                if getattr(train, key) > 0:
                    text = f"images are mixed in pairs; data.batch_size {parts.data.batch_size} is odd: use an even one"
                    found.setdefault(_at(place, phase, key), text)
    yield from found.items()


def _strategies(parts: Parts) -> Mistakes:
    """Something has to compress the model."""
    phases = [phase for phase in parts.phases if phase is not None]
    if not phases or len(phases) < len(parts.phases) or any(phase.strategies for phase in phases):
        return
    if parts.budget is not None and parts.budget.target < 1:
        yield (
            ("phases",),
            f"no phase names a strategy, so nothing would be compressed to {parts.budget.target:g}; give one of them "
            f"strategies ({', '.join(registry().names('strategy')[:6]) or 'none is installed'})",
        )


def _alone(parts: Parts) -> Mistakes:
    """What a strategy puts in a model stays there in later phases, so this holds over all of them."""
    taken: dict[str, str] = {}
    for i, phase in enumerate(parts.phases):
        for j, strategy in enumerate(phase.strategies if phase is not None else ()):
            for kind in sorted(strategy.alone):
                other = taken.setdefault(kind, strategy.use)
                if other != strategy.use:
                    text = f"{strategy.use} and {other} both act on the {kind} of the model, where only one can"
                    yield ("phases", i, "strategies", j, "use"), f"{text}; remove one of them"


def _order(parts: Parts) -> Mistakes:
    """Names of phases are free, but two of them say what somebody wanted."""
    searches = [i for i, phase in enumerate(parts.phases) if phase is not None and _SEARCH.match(phase.name)]
    for i in searches:
        phase = parts.phases[i]
        if phase is not None and not phase.strategies and any(other and other.strategies for other in parts.phases):
            yield (
                ("phases", i),
                f"the phase {phase.name!r} names no strategy, so it searches nothing; give it strategies, or rename it",
            )
    for i, phase in enumerate(parts.phases[: searches[0]] if searches else ()):
        if phase is not None and phase.strategies and _FINETUNE.match(phase.name):
            yield (
                ("phases", i),
                f"the phase {phase.name!r} stands before the search and would search itself; phases run as they are "
                "listed, so put it after the search",
            )


def _options(parts: Parts) -> Mistakes:
    """What plugins themselves object to, beside the rest of the recipe."""
    if parts.data is None:
        return
    epochs: dict[str, int] = {}
    for phase in parts.phases:
        for strategy in phase.strategies if phase is not None else ():
            epochs[strategy.use] = epochs.get(strategy.use, 0) + (phase.epochs if phase is not None else 0)
    named: set[str] = set()
    for i, phase in enumerate(parts.phases):
        for j, strategy in enumerate(phase.strategies if phase is not None else ()):
            if strategy.use not in named:  # what a later phase inherits is reported once
                first = phase.epochs if phase is not None else 0
                beside = Beside(parts.data.batch_size, epochs[strategy.use], first)
                yield from _asked(strategy, ("phases", i, "strategies", j), beside)
            named.add(strategy.use)


def _asked(value: Any, place: Path, beside: Beside) -> Mistakes:
    """The mistakes of a plugin's options and of all plugins inside them."""
    if isinstance(value, PluginConfig):
        for option, text in value.mistakes(beside):
            yield ((*place, option) if option else place), text
    if isinstance(value, BaseModel):
        for key in type(value).model_fields:
            yield from _asked(getattr(value, key), (*place, key), beside)
    elif isinstance(value, list | tuple):
        for index, item in enumerate(value):
            yield from _asked(item, (*place, index), beside)


def _dial(parts: Parts) -> Mistakes:
    if (
        parts.evaluate is not None
        and parts.evaluate.dial
        and parts.budget is not None
        and parts.budget.metric != "macs"
    ):
        yield (
            ("evaluate", "dial"),
            f"gates can be turned to other MACs, and this budget is of {parts.budget.metric}; leave dial out, or give "
            "budget.macs",
        )


def _static(parts: Parts) -> Mistakes:
    if parts.budget is not None and parts.budget.metric == "latency" and parts.budget.static is not None:
        yield (
            ("budget", "static"),
            "a budget of latency is for models without gates, which have nothing but this one bound; leave static out",
        )
