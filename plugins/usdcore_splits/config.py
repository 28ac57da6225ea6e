"""Options of the splits. Imports no torch."""

from __future__ import annotations

from typing import Self

from pydantic import Field, model_validator

from usdcore.recipe import PluginConfig


class AverageSplit(PluginConfig):
    """Groups of one size; the last one holds what is left."""

    size: int = Field(ge=1)
    """Samples in a group: 32 for the paper's Avg-32."""


class RandomSplit(PluginConfig):
    """Groups with sizes drawn uniformly from low to high, both included; the last one is cut to fit."""

    low: int = Field(default=1, ge=1)
    """Smallest group."""
    high: int = Field(default=64, ge=1)
    """Largest group."""

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        if self.low > self.high:
            msg = f"low ({self.low}) is larger than high ({self.high})"
            raise ValueError(msg)
        return self


class RecursiveSplit(PluginConfig):
    """Half of the batch, half of the rest, and so on."""

    min_group: int = Field(default=1, ge=1)
    """Halving stops when at most this many samples are left; they are the last group."""
