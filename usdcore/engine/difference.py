"""What is different between two recipes, key by key; what does not change a run's numbers is left out."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from usdcore.recipe.dumping import computed

if TYPE_CHECKING:
    from collections.abc import Iterator

    from usdcore.recipe import Recipe

_NOTHING = "nothing"


def differences(before: Recipe, now: Recipe) -> list[str]:
    """Lines like `train.lr: 0.002 -> 0.001`, with keys as `--set` takes them, in the recipe's order."""
    old, new = dict(_leaves(computed(before), "")), dict(_leaves(computed(now), ""))
    return [
        f"{key}: {old.get(key, _NOTHING)} -> {new.get(key, _NOTHING)}"
        for key in dict.fromkeys([*old, *new])
        if old.get(key) != new.get(key)
    ]


def _leaves(value: Any, key: str) -> Iterator[tuple[str, str]]:
    if isinstance(value, dict) and value:
        pairs = [(str(name), inner) for name, inner in value.items()]
    elif isinstance(value, list) and any(isinstance(inner, dict | list) for inner in value):
        pairs = [(str(index), inner) for index, inner in enumerate(value)]
    else:
        yield key, json.dumps(value, ensure_ascii=False)
        return
    for name, inner in pairs:
        yield from _leaves(inner, f"{key}.{name}" if key else name)
