"""How to train; the keys bear timm's argument names."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any, Literal, Self

from pydantic import Field, create_model, model_serializer, model_validator

from usdcore.recipe.base import Section

if TYPE_CHECKING:
    from pydantic import SerializerFunctionWrapHandler


class CompileConfig(Section):
    """How `torch.compile` is to be used."""

    backend: Literal["inductor", "aot_eager", "eager"] = "inductor"
    """inductor is the fast one, and needs a C++ compiler, on a GPU Triton; the others are for looking for mistakes."""
    mode: Literal["default", "max-autotune-no-cudagraphs"] = "default"
    """inductor's."""

    @model_validator(mode="after")
    def _mode_of_inductor(self) -> Self:
        if self.mode != "default" and self.backend != "inductor":
            msg = f"mode {self.mode} is one of the backend inductor, not of {self.backend}: leave mode out"
            raise ValueError(msg)
        return self


class TrainConfig(Section):
    """Optimizer, schedule and loss. The learning rate has no default."""

    opt: str = Field(default="adamw", min_length=1)
    """timm's optimizer name."""
    lr: float = Field(gt=0)
    """Learning rate at the end of the warm-up."""
    weight_decay: float = Field(default=0.05, ge=0)
    """Weight decay; biases, norms and other 1-d parameters have none."""
    momentum: float = Field(default=0.9, ge=0, lt=1)
    """For optimizers that have a momentum."""
    sched: Literal["cosine", "none"] = "cosine"
    """How the learning rate falls over a phase's epochs."""
    warmup_epochs: int = Field(default=0, ge=0, le=1_000_000)
    """Epochs at a phase's start over which the learning rate rises."""
    warmup_lr: float = Field(default=1e-6, ge=0)
    """Learning rate that the warm-up starts from."""
    min_lr: float = Field(default=0.0, ge=0)
    """Learning rate that the schedule ends at."""
    clip_grad: float | None = Field(default=None, gt=0)
    """Largest norm of the gradient; null: no clipping."""
    amp: Literal["none", "bf16"] = "none"
    """Mixed precision."""
    ema: float | None = Field(default=None, gt=0, lt=1)
    """Decay of the weights' moving average; null: none is kept."""
    smoothing: float = Field(default=0.1, ge=0, lt=1)
    """Label smoothing."""
    mixup: float = Field(default=0.0, ge=0)
    """Mixup's alpha; 0: off."""
    cutmix: float = Field(default=0.0, ge=0)
    """Cutmix's alpha; 0: off."""
    compile: bool | CompileConfig = False
    """Run the model's forward and backward of training steps under torch.compile; a mapping says how."""
    optimizer_state: Literal["carry", "fresh"] = "fresh"
    """What a phase's optimizer starts from; carry: the moments of the phase before, of the entries that survived."""

    @property
    def compiles(self) -> CompileConfig | None:
        """How steps are compiled; None where they are not."""
        return CompileConfig() if self.compile is True else self.compile or None


class _Partial(Section):
    """Keys that were not given are not dumped either: null may be a value of its own (``ema: null``)."""

    @model_serializer(mode="wrap")
    def _given_only(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        return {key: value for key, value in handler(self).items() if key in self.model_fields_set}


def _drop_default(schema: dict[str, Any]) -> None:
    schema.pop("default", None)


def _optional(name: str) -> tuple[Any, Any]:
    field = TrainConfig.model_fields[name]
    described = Field(description=field.description, json_schema_extra=_drop_default)
    return Annotated[field.annotation, *field.metadata, described], None


if TYPE_CHECKING:
    TrainOverride = _Partial
else:
    TrainOverride = create_model(
        "TrainOverride",
        __base__=_Partial,
        __module__=__name__,
        __cls_kwargs__={"use_attribute_docstrings": False},
        __doc__="Any of the training keys, for one phase; only the keys in `model_fields_set` count.",
        **{name: _optional(name) for name in TrainConfig.model_fields},
    )
