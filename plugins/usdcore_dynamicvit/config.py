"""Options of `dynamicvit`. Imports no torch.

Defaults are those published with DynamicViT (Rao et al., 2021) for DeiT-S; those marked (ours) have no counterpart.
"""

from __future__ import annotations

from itertools import pairwise
from typing import TYPE_CHECKING, ClassVar

from pydantic import Field, field_validator

from usdcore.recipe import PluginConfig

if TYPE_CHECKING:
    from collections.abc import Iterator

    from usdcore.hooks.config import Beside

MUTABLE = {"mutable": True}


class DynamicVitConfig(PluginConfig):
    """At each place a predictor scores the patch tokens that are left, and the best stay in all blocks that follow."""

    alone: ClassVar[frozenset[str]] = frozenset({"tokens"})

    keep_ratio: float | None = Field(default=None, gt=0, le=1)
    """rho: behind place s, floor(rho^s * patches) tokens are left; published: 0.7. null: found so that the model costs
    what the budget says, to the last token that fits (ours). State it where another strategy of the same phase prunes,
    as the budget is then met by both."""
    places: tuple[int, ...] | None = Field(default=None, min_length=1, max_length=64)
    """Numbers of the blocks, from 0, before which tokens are dropped; null: at 1/4, 1/2 and 3/4 of the depth, which is
    before blocks 3, 6 and 9 of 12."""
    tau: float = Field(default=1.0, gt=0)
    """Temperature of the Gumbel-softmax between keeping and dropping."""
    ratio_weight: float = Field(default=2.0, ge=0, json_schema_extra=MUTABLE)
    """Weight of (kept share of an image - rho^s)^2, a mean over images and places; published: 2, and 5 for DeiT-B."""
    kl_weight: float = Field(default=0.5, ge=0, json_schema_extra=MUTABLE)
    """Weight of KL(teacher || student) of the logits; the teacher is the dense model."""
    token_weight: float = Field(default=0.5, ge=0, json_schema_extra=MUTABLE)
    """Weight of the mean squared difference to the teacher's final tokens, of those that are kept."""
    final: str | None = Field(default=None, min_length=1)
    """The module that gives the final tokens; null: `norm` where the model has it, else the last block."""
    lr: float | None = Field(default=None, gt=0, json_schema_extra=MUTABLE)
    """Learning rate of the predictors; null: the phase's (train.lr)."""
    weight_decay: float = Field(default=0.05, ge=0, json_schema_extra=MUTABLE)
    """Weight decay of the predictors' matrices (reconstructed)."""
    host_lr: float = Field(default=0.01, ge=0, le=1, json_schema_extra=MUTABLE)
    """What the learning rate of the model itself is multiplied by."""
    frozen_epochs: int = Field(default=5, ge=0)
    """Epochs, in the phase that makes the predictors, in which only they are trained."""
    fixed: tuple[str, ...] = ("cls_token", "pos_embed")
    """Parameters of the model that are not trained, where it has them."""

    def mistakes(self, beside: Beside) -> Iterator[tuple[str, str]]:
        """Nothing is learned without training."""
        if beside.first == 0:
            text = f"{self.use} learns which tokens to keep in the first phase that names it, which has 0 epochs"
            yield "", f"{text}; give it epochs"
        elif self.frozen_epochs > beside.first:
            text = f"the model would be frozen for {self.frozen_epochs} epochs of a phase that has {beside.first}"
            yield "frozen_epochs", f"{text}; use at most {beside.first}, where it is frozen in all of them"

    @field_validator("places")
    @classmethod
    def _ascending(cls, places: tuple[int, ...] | None) -> tuple[int, ...] | None:
        if places is not None and (places[0] < 0 or any(b <= a for a, b in pairwise(places))):
            msg = "places are numbers of blocks from 0, ascending, each once"
            raise ValueError(msg)
        return places
