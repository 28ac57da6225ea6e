"""All models of the matrix."""

from __future__ import annotations

from dataclasses import replace

from .entries import Entry
from .handwritten import HANDWRITTEN
from .timm_models import FAMILIES, HEADLINE
from .torchvision_models import TORCHVISION
from .transformers_models import TRANSFORMERS

MODELS: tuple[Entry, ...] = (
    *(replace(entry, is_headline=True) for entry in HEADLINE),
    *FAMILIES,
    *TORCHVISION,
    *TRANSFORMERS,
    *HANDWRITTEN,
)


def find(name: str) -> Entry:
    """The entry of a name."""
    return next(entry for entry in MODELS if entry.name == name)
