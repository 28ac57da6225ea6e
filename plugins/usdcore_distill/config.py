"""Options of `distill`. Imports no torch.

The defaults of alpha, tau and kind are those of the command in UVC's public README.
"""

from __future__ import annotations

from pathlib import Path  # noqa: TC003 - pydantic reads the annotation
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import BaseModel, Discriminator, Field, Tag, field_validator, model_validator

from usdcore.recipe import PluginConfig
from usdcore.recipe.base import Section

if TYPE_CHECKING:
    from collections.abc import Iterator

    from usdcore.hooks.config import Beside

MUTABLE = {"mutable": True}


class TeacherConfig(Section):
    """A teacher other than the dense model: one of timm's with weights, or a model that usdcore saved."""

    model: str | None = Field(default=None, min_length=1)
    """timm's model name; with `pretrained: true` a tag may follow, as in regnety_160.deit_in1k."""
    weights: Path | None = None
    """Its weights: safetensors, or a torch file that loads with weights_only."""
    pretrained: bool = False
    """Take timm's weights instead. A dry run (`usdcore plan`) does not fetch them."""
    kwargs: dict[str, Any] = Field(default_factory=dict)
    """Further arguments of timm.create_model, such as img_size."""
    file: Path | None = None
    """A model that usdcore saved, instead of all of the above."""

    @model_validator(mode="after")
    def _one_teacher(self) -> TeacherConfig:
        if (self.model is None) == (self.file is None):
            msg = "a teacher is either timm's (give model) or one that usdcore saved (give file)"
            raise ValueError(msg)
        if self.file is not None and (self.weights is not None or self.pretrained or self.kwargs):
            msg = "a file says all about its model; leave out weights, pretrained and kwargs"
            raise ValueError(msg)
        if self.model is not None and (self.weights is None) == (not self.pretrained):
            msg = "a teacher that knows nothing has nothing to teach; give either weights or pretrained: true"
            raise ValueError(msg)
        return self


class PairConfig(Section):
    """Which module of the student is matched with which of the teacher: numbers of layers, or names of modules."""

    student: int | str
    """In the student."""
    teacher: int | str
    """In the teacher."""


class FeaturesConfig(Section):
    """Match what passes inside both models: the mean over pairs of the mean squared difference of tokens [B, N, C],
    where each token is first normalised over its channels to mean 0 and variance 1. 0 is a match, 2 means unrelated.
    """

    weight: float = Field(default=1.0, gt=0)
    """Weight of the term beside that of the logits."""
    layers: tuple[int | str | PairConfig, ...] | None = Field(default=None, min_length=1)
    """Layers by number (from 0; -1 is the last), modules by name, or pairs {student: 5, teacher: blocks.11}. A number
    means the layer at the same relative depth of the teacher, a name the module of the same name. null: the middle and
    the last layer."""
    lr: float = Field(default=1e-3, gt=0)
    """Learning rate of the linear map from the student's width to the teacher's, where they differ."""


def _form(value: Any) -> str:
    return "mapping" if isinstance(value, dict | BaseModel) else "name"


Teacher = Annotated[
    Annotated[Literal["dense"], Tag("name")] | Annotated[TeacherConfig, Tag("mapping")], Discriminator(_form)
]


class DistillConfig(PluginConfig):
    """The loss becomes (1 - alpha) * task + alpha * distillation."""

    teacher: Teacher = "dense"
    """`dense`: the model as it enters the first phase that compresses. Else a mapping: {model: regnety_160, weights:
    FILE, kwargs: {}} or {model: NAME, pretrained: true} is one of timm's, {file: runs/x/model.safetensors} one that
    usdcore saved. It sees the student's images, normalised and mixed as they are."""
    kind: Literal["soft", "hard", "features"] = Field(default="soft", json_schema_extra=MUTABLE)
    """`soft`: tau^2 * KL(teacher || student) of the classes' probabilities at temperature tau. `hard`: cross-entropy
    to the teacher's first choice (DeiT). `features`: no logits, what `features` says alone."""
    alpha: float = Field(default=0.1, ge=0, le=1, json_schema_extra=MUTABLE)
    """Share of distillation in the loss; the task's own loss has the rest."""
    tau: float = Field(default=1.0, gt=0, json_schema_extra=MUTABLE)
    """Temperature of `soft`."""
    reduction: Literal["batchmean", "batch_classes"] = Field(default="batchmean", json_schema_extra=MUTABLE)
    """What the sum of `soft` over batch and classes is divided by: the batch size, or (UVC's public code) the batch
    size times the number of classes, which makes it 1000 times smaller on ImageNet."""
    features: FeaturesConfig | None = Field(default=None, json_schema_extra=MUTABLE)
    """Match inner features too: {weight: 1.0, layers: [5, 11], lr: 1.0e-3}, where `layers` may also name modules, or
    pairs {student: 5, teacher: blocks.11}; default: the middle and the last. null: no, but for `kind: features`."""
    token: Literal["auto", "class", "distillation"] = "auto"
    """Whose logits learn from the teacher's. `distillation`: those of the distillation token, while the task's loss has
    the class token's; timm averages both in evaluation. `class`: the same as the task's. `auto`: the distillation
    token, if the model has one."""
    cache: bool = Field(default=False, json_schema_extra=MUTABLE)
    """Keep the teacher's logits of each image, so that the teacher runs once per image instead of once per step; for
    training without augmentation and mixup. Checkpoints hold them too; at most 1 GiB."""

    @property
    def matching(self) -> FeaturesConfig | None:
        """How inner features are matched; None if they are not."""
        return self.features or (FeaturesConfig() if self.kind == "features" else None)

    def mistakes(self, beside: Beside) -> Iterator[tuple[str, str]]:
        """A teacher teaches while the model is trained."""
        if beside.epochs == 0:
            text = f"{self.use} teaches in training, and the phases that name it have 0 epochs"
            yield "", f"{text}; name it in one that has some, or leave it out"

    @field_validator("teacher", mode="before")
    @classmethod
    def _name_or_mapping(cls, value: Any) -> Any:
        if value != "dense" and not isinstance(value, dict | BaseModel):
            msg = (
                "a teacher is dense, or a mapping: {model: NAME, weights: FILE} or {model: NAME, pretrained: true} for "
                "one of timm's, {file: FILE} for one that usdcore saved; write one of these"
            )
            raise ValueError(msg)
        return value

    @model_validator(mode="after")
    def _logits_only(self) -> DistillConfig:
        if self.cache and self.matching is not None:
            msg = "cache keeps the teacher's logits, but features need its forward in every step: leave out one of them"
            raise ValueError(msg)
        return self
