"""UVC: pruning of heads, head dims and neurons, and skipping of blocks, jointly under one budget. Registers `uvc`."""

from __future__ import annotations

from typing import TYPE_CHECKING

from usdcore.hooks import hookimpl
from usdcore_uvc.config import UvcConfig

if TYPE_CHECKING:
    from usdcore.hooks import Register


@hookimpl
def usdcore_register(register: Register) -> None:
    """Offer the strategy."""
    register.strategy(
        name="uvc",
        config=UvcConfig,
        implementation="usdcore_uvc.strategy:Uvc",
        summary="prunes heads, head dims and neurons and skips blocks jointly, by a primal-dual method (UVC)",
    )
