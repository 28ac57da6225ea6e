"""What somebody probably meant: a quoted number, a percentage, `yes`, a key that belongs elsewhere."""

from __future__ import annotations

import math
import re
from typing import TYPE_CHECKING

from usdcore.errors import nearest
from usdcore.hooks.config import PluginConfig
from usdcore.hooks.loader import registry
from usdcore.hooks.reference import KINDS
from usdcore.recipe.base import Section
from usdcore.recipe.scalars import read_scalar, write_scalar

if TYPE_CHECKING:
    from collections.abc import Iterator

    from pydantic import BaseModel

_YES = {"yes": True, "on": True, "y": True, "no": False, "off": False, "n": False, "true": True, "false": False}
_OTHER_WORDS = {
    "arch": "name",
    "batchsize": "batch_size",
    "classes": "num_classes",
    "dataset": "data",
    "directory": "root",
    "flops": "macs",
    "grad_clip": "clip_grad",
    "image_size": "input_size",
    "img_size": "input_size",
    "label_smoothing": "smoothing",
    "learning_rate": "lr",
    "num_workers": "workers",
    "optim": "opt",
    "optimizer": "opt",
    "parameters": "params",
    "path": "root",
    "random_seed": "seed",
    "scheduler": "sched",
    "strategy": "strategies",
    "wd": "weight_decay",
}
"""What other programs call our keys."""
_PERCENT = re.compile(r"([0-9]+(?:\.[0-9]+)?) ?%")
_MOST_OWNERS = 3
_LONGEST = 40
"""Characters of a text that may be a number."""


def number_meant(value: object, kind: str) -> str | None:
    """How to write what is no number: `kind` is "int" or "float". None where nobody can tell."""
    if isinstance(value, bool) or value is None:
        return None
    if isinstance(value, float):
        return f"write {int(value)}" if kind == "int" and value.is_integer() and abs(value) < 2**53 else None
    if not isinstance(value, str) or len(value) > _LONGEST:
        return None
    text = value.strip()
    if percent := _PERCENT.fullmatch(text):
        return f"write {float(percent[1]) / 100:g}, a fraction" if kind == "float" else None
    for written in (text, text.replace("_", ""), text.replace(",", ".")):
        meant = read_scalar(written)
        if not isinstance(meant, int | float) or isinstance(meant, bool) or not math.isfinite(meant):
            continue
        if kind == "float" or isinstance(meant, int):
            return f"write {written} without quotes" if written == value else f"write {written}"
    return None


def truth_meant(value: object) -> str | None:
    """The same for what is neither true nor false."""
    meant = _YES.get(value.strip().lower()) if isinstance(value, str) else None
    if isinstance(value, int) and value in (0, 1):
        meant = bool(value)
    return None if meant is None else f"write {write_scalar(meant)}"


def percent_meant(value: object, bound: float) -> str:
    """A remark on a number that is too large where a fraction is wanted, in brackets; often nothing."""
    if bound != 1 or isinstance(value, bool) or not isinstance(value, int | float) or not 2 <= value <= 100:
        return ""
    return f" ({value:g} % is {value / 100:g})"


def unknown_key(key: str, owner: type[BaseModel] | None) -> str:
    """What to do about a key that its section does not have."""
    keys = sorted(owner.model_fields) if owner is not None else []
    instead = getattr(owner, "removed", {}).get(key)
    if instead is not None:
        return f"this option was removed; {instead}"
    places = list(_owners(key, owner))
    if places:
        more = " and others" if len(places) > _MOST_OWNERS else ""
        return f"unknown key here; put it in {' or in '.join(places[:_MOST_OWNERS])}{more}"
    if _OTHER_WORDS.get(key.lower()) in keys:
        return f"unknown key; did you mean {_OTHER_WORDS[key.lower()]!r}?"
    return f"unknown key; {nearest(key, keys)}"


def _owners(key: str, owner: type[BaseModel] | None) -> Iterator[str]:
    """The sections of a recipe, or the plugins of the owner's kind, that know a key."""
    if owner is None or not issubclass(owner, PluginConfig | Section):
        return
    if issubclass(owner, PluginConfig):
        plugins = registry()
        kinds = [kind for kind in KINDS for name in plugins.names(kind) if plugins.config(kind, name) is owner]
        for kind in kinds:
            for name in plugins.names(kind):
                if key in plugins.config(kind, name).model_fields:
                    yield f"the {kind.replace('-', ' ')} {name}"
        return
    yield from _sections(key, owner)


def _sections(key: str, owner: type[BaseModel]) -> Iterator[str]:
    from usdcore.recipe.phases import PhaseConfig
    from usdcore.recipe.schema import Recipe

    if key in Recipe.model_fields and owner is not Recipe:
        yield "the top of the recipe"
    for name, field in Recipe.model_fields.items():
        section = field.annotation
        if isinstance(section, type) and issubclass(section, Section) and key in section.model_fields:
            yield name
    if key in PhaseConfig.model_fields and owner is not PhaseConfig:
        yield "a phase"
    plugins = registry()
    if any(key in plugins.config("data-source", name).model_fields for name in plugins.names("data-source")):
        yield "data"
