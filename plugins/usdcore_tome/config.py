"""Options of `tome`. Imports no torch.

Token Merging (Bolya et al., 2023). The paper states r, or r and an inflection, or r of each block; that r is
solved for, to meet a budget, is ours.
"""

from __future__ import annotations

from typing import Annotated, ClassVar

from pydantic import Field, model_validator

from usdcore.recipe import PluginConfig

Count = Annotated[int, Field(ge=0, le=1_000_000)]


class TomeConfig(PluginConfig):
    """Token merging: in each block, between attention and FFN, the most similar pairs of tokens become one."""

    alone: ClassVar[frozenset[str]] = frozenset({"tokens"})

    r: Count | list[Count] | None = None
    """How many tokens each block merges away, at most half of what is left; a list says it for each block. null: as few
    as meet the budget, a fractional r (some blocks merge a few more than others)."""
    inflection: float = Field(default=0.0, ge=-1, le=1)
    """How r changes from the first block to the last, in a line around its mean: 0 constant, 1 from 0 to 2r, -1 from 2r
    to 0 (the paper's decreasing schedule)."""
    target: float | None = Field(default=None, gt=0, le=1)
    """Of `r: null`: the share of the dense model's MACs that merging alone is to leave. null: the budget, so that
    strategies beside it have nothing to save; state it where they are to save the rest."""
    proportional: bool = True
    """A token that stands for several counts as that many in every later softmax (the paper's proportional attention).
    The paper switches it off for MAE models that are not fine-tuned."""

    @model_validator(mode="after")
    def _one_schedule(self) -> TomeConfig:
        if self.target is not None and self.r is not None:
            msg = "target is what r is solved for, and r is stated: remove one of them"
            raise ValueError(msg)
        if isinstance(self.r, list) and self.inflection != 0:
            msg = "inflection shapes a schedule, and r states it block by block: remove one of them"
            raise ValueError(msg)
        return self
