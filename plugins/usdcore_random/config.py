"""Options of `random-gates`. Imports no torch."""

from __future__ import annotations

from pydantic import Field, model_validator

from usdcore.recipe import PluginConfig


class RandomGatesConfig(PluginConfig):
    """Every branch runs at the same rate, which the budget sets; which images or batches it runs for is drawn anew each
    time, in training and in evaluation.
    """

    attention: bool = True
    """Skip attention branches."""
    ffn: bool = True
    """Skip FFN branches."""
    keep_first: int = Field(default=1, ge=0)
    """So many blocks at the front always run, as most methods that skip leave them alone."""
    seed: int = Field(default=0, ge=0, lt=2**31)
    """Of the draws."""

    @model_validator(mode="after")
    def _something(self) -> RandomGatesConfig:
        if not (self.attention or self.ffn):
            msg = "nothing to skip: set attention or ffn to true"
            raise ValueError(msg)
        return self
