"""The models of the matrix. Each is built twice alike: full (as published) and small (for a test of a second)."""

from __future__ import annotations

import contextlib
import importlib.util
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import timm
import torch
from timm.layers import set_fused_attn
from torch import nn

from usdcore.backbones import require_model
from usdcore.plans import Base

from .randomised import randomise

SMALL_CLASSES = 7
Builder = Callable[[bool, bool], nn.Module]


@dataclass(frozen=True)
class Entry:
    """One model. `small` are the constructor's arguments that make it small, or None where the family has none.

    `build` makes models that timm does not, from (is_small, is_fused); `needs` names the package that they take.
    `has_two_ways`: to compute attention. `is_headline`: one of the models that
    other tools were tried on.
    """

    name: str
    family: str
    source: str = "timm"
    input_size: int = 224
    small_size: int = 32
    small: dict[str, Any] | None = None
    kwargs: dict[str, Any] = field(default_factory=dict)
    build: Builder | None = None
    needs: str = ""
    has_two_ways: bool = True
    is_headline: bool = False

    @property
    def is_here(self) -> bool:
        """Whether the package that makes it is installed."""
        return not self.needs or importlib.util.find_spec(self.needs) is not None

    @property
    def has_small(self) -> bool:
        """Whether there is a small version of it."""
        return self.small is not None or self.build is not None

    def base(self, is_small: bool) -> Base | None:
        """What a plan over the model starts from; None where timm does not make it."""
        if self.build is not None:
            return None
        size = self.small_size if is_small else self.input_size
        kwargs = self.kwargs | (self.small or {} if is_small else {})
        return Base(
            name=self.name,
            kwargs=kwargs,
            num_classes=SMALL_CLASSES if is_small else 1000,
            input_shape=(3, size, size),
        )

    def model(self, is_small: bool, is_fused: bool = True) -> nn.Module:
        """The model with everything randomised, in evaluation mode; the same at each call."""
        torch.manual_seed(0)
        with _attention(is_fused):
            if self.build is not None:
                made = self.build(is_small, is_fused)
            else:
                base = self.base(is_small)
                assert base is not None
                require_model(base.name)
                made = timm.create_model(base.name, num_classes=base.num_classes, **base.kwargs)
        return randomise(made).eval()

    def images(self, is_small: bool, number: int) -> torch.Tensor:
        """Random images, the same at each call."""
        size = self.small_size if is_small else self.input_size
        return torch.randn(number, 3, size, size, generator=torch.Generator().manual_seed(number))


@contextlib.contextmanager
def _attention(is_fused: bool) -> Iterator[None]:
    """timm's modules look at this once, when they are made."""
    set_fused_attn(is_fused)
    try:
        yield
    finally:
        set_fused_attn(True)
