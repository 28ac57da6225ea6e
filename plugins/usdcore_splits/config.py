"""Options of the splits. Imports no torch."""

from __future__ import annotations

from typing import TYPE_CHECKING, Self

from pydantic import Field, model_validator

from usdcore.recipe import PluginConfig

if TYPE_CHECKING:
    from collections.abc import Iterator

    from usdcore.hooks.config import Beside


class AverageSplit(PluginConfig):
    """Groups of one size; the last one holds what is left."""

    size: int = Field(ge=1)
    """Samples in a group: 32 for the paper's Avg-32."""

    def mistakes(self, beside: Beside) -> Iterator[tuple[str, str]]:
        """A group that no batch fills."""
        if self.size > beside.batch_size:
            yield "size", _too_large(self.size, beside.batch_size)


class RandomSplit(PluginConfig):
    """Groups with sizes drawn uniformly from low to high, both included; the last one is cut to fit."""

    low: int = Field(default=1, ge=1)
    """Smallest group."""
    high: int = Field(default=64, ge=1)
    """Largest group."""

    def mistakes(self, beside: Beside) -> Iterator[tuple[str, str]]:
        """Groups that no batch fills."""
        if self.low > beside.batch_size:
            yield "low", _too_large(self.low, beside.batch_size)

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        if self.low > self.high:
            msg = f"low ({self.low}) is larger than high ({self.high}); give low the smaller one"
            raise ValueError(msg)
        return self


class RecursiveSplit(PluginConfig):
    """Half of the batch, half of the rest, and so on."""

    min_group: int = Field(default=1, ge=1)
    """Halving stops when at most this many samples are left; they are the last group."""

    def mistakes(self, beside: Beside) -> Iterator[tuple[str, str]]:
        """A halving that never starts."""
        if self.min_group > beside.batch_size:
            yield "min_group", _too_large(self.min_group, beside.batch_size)


def _too_large(size: int, batch_size: int) -> str:
    return f"{size} is more than the {batch_size} images of a batch (data.batch_size), so nothing is split; use less"
