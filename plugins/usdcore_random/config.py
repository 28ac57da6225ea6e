"""Options of `random-gates`. Imports no torch."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

from pydantic import Field, model_serializer, model_validator

from usdcore.recipe import PluginConfig

if TYPE_CHECKING:
    from pydantic import SerializerFunctionWrapHandler

Rate = Annotated[float, Field(gt=0, lt=1)]
"""The share of images or batches for which something runs."""


class RandomGatesConfig(PluginConfig):
    """Every branch runs at the same rate, which the budget sets, or at the one that `rates` states for it; which images
    or batches it runs for is drawn anew each time, in training (for each image) and in evaluation.
    """

    attention: bool = True
    """Skip attention branches."""
    ffn: bool = True
    """Skip FFN branches."""
    keep_first: int = Field(default=1, ge=0)
    """So many blocks at the front always run, as most methods that skip leave them alone."""
    rates: Annotated[dict[str, Rate], Field(min_length=1, max_length=10_000)] | None = None
    """By branch or block (`blocks.1.mlp`, `blocks.1`), how often it runs; whatever is not named always does. The budget
    does not move these, so what else compresses has to meet it. Null: one rate for all, which the budget sets."""
    seed: int = Field(default=0, ge=0, lt=2**31)
    """Of the draws."""

    @model_validator(mode="after")
    def _something(self) -> RandomGatesConfig:
        if not (self.attention or self.ffn):
            msg = "nothing to skip: set attention or ffn to true"
            raise ValueError(msg)
        both = sorted({"attention", "ffn", "keep_first"} & self.model_fields_set) if self.rates is not None else []
        if both:
            msg = f"rates name what is skipped, so they leave no choice to {' and '.join(both)}; give one or the other"
            raise ValueError(msg)
        return self

    @model_serializer(mode="wrap")
    def _without_what_is_new(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        # A later option: recipes without it keep their hash.
        stated: dict[str, Any] = handler(self)
        return {key: value for key, value in stated.items() if key != "rates" or value is not None}
