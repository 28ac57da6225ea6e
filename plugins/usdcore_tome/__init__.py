"""ToMe: merges the most similar tokens of every block, with training or without. Registers `tome`."""

from __future__ import annotations

from typing import TYPE_CHECKING

from usdcore.hooks import hookimpl
from usdcore_tome.config import TomeConfig

if TYPE_CHECKING:
    from usdcore.hooks import Register


@hookimpl
def usdcore_register(register: Register) -> None:
    """Offer the strategy."""
    register.strategy(
        name="tome",
        config=TomeConfig,
        implementation="usdcore_tome.strategy:Tome",
        summary="merges similar tokens between attention and FFN of each block (ToMe); needs no training",
    )
