"""usdcore: compress Vision Transformers by pluggable strategies, under one budget.

Importing it is cheap: each public name is imported when it is first used, and torch only by the names that need it.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from usdcore.artifact import load, save
    from usdcore.costs import cost
    from usdcore.engine.pipeline import run
    from usdcore.plans import Base, Drop, Keep, Plan
    from usdcore.recipe import load_recipe
    from usdcore.session import Session
    from usdcore.strategy import Budget
    from usdcore.surgery import shrink
    from usdcore.units import find_units

    __version__: str

_HOMES = {
    "Base": "usdcore.plans",
    "Budget": "usdcore.strategy",
    "Drop": "usdcore.plans",
    "Keep": "usdcore.plans",
    "Plan": "usdcore.plans",
    "Session": "usdcore.session",
    "cost": "usdcore.costs",
    "find_units": "usdcore.units",
    "load": "usdcore.artifact",
    "load_recipe": "usdcore.recipe",
    "run": "usdcore.engine.pipeline",
    "save": "usdcore.artifact",
    "shrink": "usdcore.surgery",
}

__all__ = [
    "Base",
    "Budget",
    "Drop",
    "Keep",
    "Plan",
    "Session",
    "__version__",
    "cost",
    "find_units",
    "load",
    "load_recipe",
    "run",
    "save",
    "shrink",
]


def __getattr__(name: str) -> object:
    if name == "__version__":
        value: object = importlib.import_module("importlib.metadata").version("usdcore")
    elif name in _HOMES:
        value = getattr(importlib.import_module(_HOMES[name]), name)
    else:
        msg = f"module 'usdcore' has no attribute {name!r}"
        raise AttributeError(msg)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
