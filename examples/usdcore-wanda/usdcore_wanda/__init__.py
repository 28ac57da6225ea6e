"""Wanda for usdcore. Registers `wanda`. Imports no torch: listings and recipes are read without it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from usdcore.hooks import hookimpl
from usdcore_wanda.config import WandaConfig

if TYPE_CHECKING:
    from usdcore.hooks import Register


@hookimpl
def usdcore_register(register: Register) -> None:
    """Offer the strategy; its class is named as text, and imported when a run needs it."""
    register.strategy(
        name="wanda",
        config=WandaConfig,
        implementation="usdcore_wanda.method:Wanda",
        summary="removes the heads and neurons whose weights meet the quietest inputs (Wanda)",
    )
