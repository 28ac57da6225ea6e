"""Options of `adavit`. Imports no torch.

Sources: AdaViT (Meng et al., CVPR 2022) and the settings of its public code. What neither states is marked
(reconstructed).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, ClassVar, Literal

from pydantic import Field, model_validator

from usdcore.recipe import PluginConfig

if TYPE_CHECKING:
    from collections.abc import Iterator

    from usdcore.hooks.config import Beside

MUTABLE = {"mutable": True}
Scale = Annotated[float, Field(ge=0)]


class AdaViTConfig(PluginConfig):
    """Three linear maps per block read the stream that enters it, and decide for each image which heads, which of
    attention and FFN, and which patch tokens the block computes.
    """

    alone: ClassVar[frozenset[str]] = frozenset({"tokens"})

    heads: Literal["width", "attention"] | None = "width"
    """What a head that is off leaves out. `width` (the published models): the head, whose values are then 0 for the
    projection, and the columns at its place of what the FFN reads. `attention`: the head alone. null: no decisions
    about heads."""
    layers: bool = True
    """Decide whether a block's attention and its FFN run."""
    tokens: bool = True
    """Decide which patch tokens a block computes; those left out pass it by and may come back in the next."""
    keep_layers: int = Field(default=1, ge=0)
    """So many blocks at the front run all layers and heads (public code: 1); tokens are chosen there too."""
    target: float | None = Field(default=None, gt=0, le=1, json_schema_extra=MUTABLE)
    """Mean usage that heads, layers and tokens aim at (published: 0.5 for each). null: the one usage of all three at
    which the model costs what the budget says, for a model that is as small as it is when the phase begins
    (reconstructed)."""
    head_target: float | None = Field(default=None, gt=0, le=1, json_schema_extra=MUTABLE)
    """Mean usage of heads; null: as `target`."""
    layer_target: float | None = Field(default=None, gt=0, le=1, json_schema_extra=MUTABLE)
    """Mean usage of layers; null: as `target`."""
    token_target: float | None = Field(default=None, gt=0, le=1, json_schema_extra=MUTABLE)
    """Mean usage of patch tokens; null: as `target`."""
    head_weight: float = Field(default=2.0, ge=0, json_schema_extra=MUTABLE)
    """Weight of |mean usage of heads - target| (published: 2)."""
    layer_weight: float = Field(default=2.0, ge=0, json_schema_extra=MUTABLE)
    """Weight of |mean usage of layers - target| (published: 2)."""
    token_weight: float = Field(default=2.0, ge=0, json_schema_extra=MUTABLE)
    """Weight of (mean usage of tokens - target)^2 (published: 2)."""
    tau: float = Field(default=5.0, gt=0, json_schema_extra=MUTABLE)
    """Temperature of the Gumbel-sigmoid in training (public code: 5)."""
    noise: tuple[Scale, Scale] = Field(default=(1.0, 0.0), json_schema_extra=MUTABLE)
    """Scale of the Gumbel noise at the start and end of the phase that makes the gates; later phases keep the last
    value. It is 1 in the public code; at 0 the phase ends on the very decisions of evaluation (reconstructed)."""
    threshold: float = Field(default=0.5, gt=0, lt=1)
    """A head or a layer is on above this probability, of its logit over `tau` (public code: 0.5)."""
    token_threshold: float = Field(default=0.6, gt=0, lt=1)
    """A token is on above this probability, of its logit over `tau` in evaluation as in training (public code: 0.6)."""
    init_logit: float = 5.0
    """How far above its threshold every decision starts in training, as a logit: nearly all are on, so that a trained
    model is not torn up at once (reconstructed)."""
    lr: float | None = Field(default=None, gt=0, json_schema_extra=MUTABLE)
    """Learning rate of the linear maps, constant; null: what the phase's schedule starts from (reconstructed)."""

    def mistakes(self, beside: Beside) -> Iterator[tuple[str, str]]:
        """Nothing is learned without training."""
        if beside.epochs == 0:
            text = f"{self.use} learns what each image uses, and the phases that name it have 0 epochs"
            yield "", f"{text}; give one of them epochs"

    @model_validator(mode="after")
    def _something(self) -> AdaViTConfig:
        if self.heads is None and not self.layers and not self.tokens:
            msg = "nothing to decide about: give heads (width or attention), or set layers or tokens to true"
            raise ValueError(msg)
        return self
