"""DynamicViT: drops tokens for good at a few places, by what small predictors read of them. Registers `dynamicvit`."""

from __future__ import annotations

from typing import TYPE_CHECKING

from usdcore.hooks import hookimpl
from usdcore_dynamicvit.config import DynamicVitConfig

if TYPE_CHECKING:
    from usdcore.hooks import Register


@hookimpl
def usdcore_register(register: Register) -> None:
    """Offer the strategy."""
    register.strategy(
        name="dynamicvit",
        config=DynamicVitConfig,
        implementation="usdcore_dynamicvit.strategy:DynamicVit",
        summary="drops tokens at a few places by what predictors read of them, a fixed number in each (DynamicViT)",
    )
