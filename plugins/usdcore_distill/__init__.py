"""Knowledge distillation from a frozen teacher, beside any other strategy or alone. Registers `distill`."""

from __future__ import annotations

from typing import TYPE_CHECKING

from usdcore.hooks import hookimpl
from usdcore_distill.config import DistillConfig

if TYPE_CHECKING:
    from usdcore.hooks import Register


@hookimpl
def usdcore_register(register: Register) -> None:
    """Offer the strategy."""
    register.strategy(
        name="distill",
        config=DistillConfig,
        implementation="usdcore_distill.distill:Distill",
        summary="learns from a frozen teacher's logits and features (UVC's and DeiT's distillation)",
    )
