"""Pruning by importance, one-shot or after training. Registers `prune` and `prune-unstructured`."""

from __future__ import annotations

from typing import TYPE_CHECKING

from usdcore.hooks import hookimpl
from usdcore_prune.config import PruneConfig, UnstructuredConfig

if TYPE_CHECKING:
    from usdcore.hooks import Register


@hookimpl
def usdcore_register(register: Register) -> None:
    """Offer the two strategies."""
    register.strategy(
        name="prune",
        config=PruneConfig,
        implementation="usdcore_prune.structured:Prune",
        summary="removes heads, head dims, neurons and stream channels of least importance (magnitude, Taylor, ...)",
    )
    register.strategy(
        name="prune-unstructured",
        config=UnstructuredConfig,
        implementation="usdcore_prune.unstructured:Unstructured",
        summary="sets the smallest single weights to zero and keeps them there; the model does not get smaller",
    )
