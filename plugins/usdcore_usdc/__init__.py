"""USDC: static and dynamic compression of one model under one budget. Registers `usdc-static` and `usdc-dynamic`."""

from __future__ import annotations

from typing import TYPE_CHECKING

from usdcore.hooks import hookimpl
from usdcore_usdc.config import DynamicConfig, StaticConfig

if TYPE_CHECKING:
    from usdcore.hooks import Register


@hookimpl
def usdcore_register(register: Register) -> None:
    """Offer the two strategies."""
    register.strategy(
        name="usdc-static",
        config=StaticConfig,
        implementation="usdcore_usdc.static:Static",
        summary="learns which heads, hidden neurons and whole branches to remove (USDC Eq. 7, 8)",
    )
    register.strategy(
        name="usdc-dynamic",
        config=DynamicConfig,
        implementation="usdcore_usdc.dynamic:Dynamic",
        summary="learns gates that skip a layer's MHSA or FFN by the input; searches their networks (USDC Eq. 5, 6)",
    )
