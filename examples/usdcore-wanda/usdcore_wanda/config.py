"""Options of `wanda`. Imports no torch."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from pydantic import model_validator

from usdcore.recipe import PluginConfig

if TYPE_CHECKING:
    from collections.abc import Iterator

    from usdcore.hooks.config import Beside


class WandaConfig(PluginConfig):
    """Structured pruning by |weight| times the norm of its input, over the images of a phase (Sun et al., 2024)."""

    heads: bool = True
    """Remove attention heads."""
    hidden: bool = True
    """Remove hidden neurons."""
    normalize: Literal["mean", "none"] = "mean"
    """Divide each group's scores by their mean, so that one ranking may compare layers. The paper compares within a
    row of one matrix only, and needs none."""

    def mistakes(self, beside: Beside) -> Iterator[tuple[str, str]]:
        """Inputs are seen in training."""
        if beside.epochs == 0:
            text = f"{self.use} looks at inputs, and the phases that name it have 0 epochs"
            yield "", f"{text}; give one of them an epoch, with a small train.lr if the weights should stay"

    @model_validator(mode="after")
    def _something(self) -> WandaConfig:
        if not (self.heads or self.hidden):
            msg = "nothing to prune: set heads or hidden to true"
            raise ValueError(msg)
        return self
