"""Small models of the six kinds of plain ViT: those of the conformance kit, which plugin authors have too."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from torch import nn

from usdcore.construct import create
from usdcore.testing.models import BASES, CLASSES, INPUT, SIZE, gap, randomise

SMALL = {**SIZE, "num_classes": CLASSES}
KINDS: dict[str, Callable[[], nn.Module]] = {name: partial(create, base) for name, base in BASES.items()}

__all__ = ["INPUT", "KINDS", "SMALL", "gap", "randomise"]
