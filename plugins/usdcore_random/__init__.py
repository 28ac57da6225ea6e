"""Random gates: the control that every gate that learns has to beat. Registers `random-gates`."""

from __future__ import annotations

from typing import TYPE_CHECKING

from usdcore.hooks import hookimpl
from usdcore_random.config import RandomGatesConfig

if TYPE_CHECKING:
    from usdcore.hooks import Register


@hookimpl
def usdcore_register(register: Register) -> None:
    """Offer the strategy."""
    register.strategy(
        name="random-gates",
        config=RandomGatesConfig,
        implementation="usdcore_random.strategy:RandomGates",
        summary="skips branches at random, as often as the budget asks: a control for gates that learn",
    )
