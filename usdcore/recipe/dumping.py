"""A recipe written out again: as YAML, and as the hash that names a run."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel

from usdcore.recipe.document import MAX_BYTES, MAX_VALUES
from usdcore.recipe.emit import emit

if TYPE_CHECKING:
    from usdcore.recipe.schema import Recipe


def dump_recipe(recipe: Recipe) -> str:
    """The resolved recipe as YAML: defaults and inherited options written out, nothing extended.

    Loads again to an equal recipe wherever the same plugins are installed.
    """
    return emit(resolved(recipe))


def fits(recipe: Recipe) -> bool:
    """Whether the dump is small enough to be loaded again, as every recipe must be."""
    content = resolved(recipe)
    return _values(content) <= MAX_VALUES and len(emit(content).encode()) <= MAX_BYTES


def _values(value: Any) -> int:
    """Keys, lists and scalars, as a reader counts them."""
    if isinstance(value, dict):
        return 1 + sum(1 + _values(inner) for inner in value.values())
    return 1 + sum(_values(inner) for inner in value) if isinstance(value, list) else 1


def resolved(recipe: Recipe) -> dict[str, Any]:
    """The recipe as JSON-like values, defaults included; of a phase's training keys only those that it changes."""
    return recipe.model_dump(mode="json")


def recipe_sha256(recipe: Recipe) -> str:
    """Identifies what a recipe computes, not where: the SHA-256 of canonical JSON (sorted keys, no spaces, UTF-8).

    Left out: `note`, `device`, `threads`, `checkpoint`, `data.workers`, `data.root`, and what any other path is.
    Whether a path is given stays in (own weights or none is another run): `model.weights`, and any option that is a
    `pathlib.Path`, count as "path" or null. Everything else counts, defaults and the recipe's name included.
    """
    text = json.dumps(computed(recipe), sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return hashlib.sha256(text.encode()).hexdigest()


def computed(recipe: Recipe) -> dict[str, Any]:
    """What of a recipe decides what is computed: what its hash is taken of."""
    content = resolved(recipe)
    _hide_paths(recipe, content)
    for key in ("note", "device", "threads", "checkpoint"):
        del content[key]
    for key in ("workers", "root"):
        content["data"].pop(key, None)
    # Later keys: recipes without them keep their hash.
    if content["train"]["optimizer_state"] == "fresh":
        del content["train"]["optimizer_state"]
    if content["train"]["compile"] is False:
        del content["train"]["compile"]
    for key in ("latency", "round_to"):
        if content["budget"][key] is None:
            del content["budget"][key]
    return content


def _hide_paths(value: Any, dumped: Any) -> None:
    """Write "path" in `dumped` wherever `value`, which it was dumped from, has a path."""
    if isinstance(value, BaseModel):
        pairs = [(key, getattr(value, key)) for key in dumped]
    elif isinstance(value, dict):
        pairs = list(value.items())
    elif isinstance(value, list | tuple):
        pairs = list(enumerate(value))
    else:
        return
    for key, inner in pairs:
        if isinstance(inner, Path):
            dumped[key] = "path"
        else:
            _hide_paths(inner, dumped[key])
