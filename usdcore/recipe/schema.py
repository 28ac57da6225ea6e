"""The recipe's sections. What carries meaning (model, data, budget, seed, method) has no default."""

from __future__ import annotations

from pathlib import Path  # noqa: TC003 - pydantic reads the annotation
from typing import TYPE_CHECKING, Annotated, Any, Literal, Self

from pydantic import Field, ValidationInfo, WrapValidator, field_validator, model_validator

from usdcore.hooks.reference import Use
from usdcore.recipe.base import Count, Fraction, Name, Section
from usdcore.recipe.phases import PhaseConfig, validate_phases
from usdcore.recipe.training import TrainConfig  # noqa: TC001 - pydantic reads the annotation

if TYPE_CHECKING:
    from usdcore.hooks.config import DataConfig

    SourceConfig = DataConfig
else:
    SourceConfig = Use["data-source"]


class ModelConfig(Section):
    """The dense model: timm's own, or with your weights."""

    name: str = Field(min_length=1)
    """timm's model name."""
    num_classes: Count
    """Outputs of the classifier."""
    pretrained: bool = False
    """Start from timm's weights."""
    weights: Path | None = None
    """Start from this file: safetensors, or a torch file that loads with weights_only."""
    kwargs: dict[str, Any] = Field(default_factory=dict)
    """Further arguments of timm.create_model."""

    @model_validator(mode="after")
    def _one_start(self) -> Self:
        if self.pretrained and self.weights is not None:
            msg = "pretrained: true and weights both say where to start from; give one"
            raise ValueError(msg)
        return self


class BudgetConfig(Section):
    """What the compressed model may cost, as a fraction of the dense model: exactly one of macs, latency and params."""

    macs: Fraction | None = None
    """Executed multiply-accumulates."""
    latency: Fraction | None = None
    """Measured time of a forward at batch_size on the device that runs the recipe; for models without gates."""
    params: Annotated[Fraction | None, Field(validate_default=True)] = None
    """Parameters."""
    static: Fraction | None = None
    """A bound on the shrunk model alone, all gates on, in the same metric."""
    batch_size: Count
    """Images that share a decision where the scope is batch; the budget is promised for this size."""
    scope: Literal["batch", "sample"] = "batch"
    """Who decides at inference: the whole batch together, or each image."""
    round_to: Annotated[int, Field(ge=1, le=4096)] | Literal["auto"] | None = None
    """Sizes are multiples of so many hidden neurons, channels of a stream, and query, key and value dims of a layer;
    the budget is then met from below. `auto`: of as many as are fast on the device that runs the recipe, measured when
    the run begins. Default: `auto` for latency, else any size."""

    @field_validator("params")
    @classmethod
    def _exactly_one(cls, params: float | None, info: ValidationInfo) -> float | None:
        if {"macs", "latency"} <= info.data.keys():  # else one of them is wrong itself and reported
            targets = [target for target in (info.data["macs"], info.data["latency"], params) if target is not None]
            if not targets:
                msg = "the budget has no target; give macs, latency or params"
                raise ValueError(msg)
            if len(targets) > 1:
                msg = "the budget has several targets; give one of macs, latency and params"
                raise ValueError(msg)
        return params

    @property
    def metric(self) -> Literal["macs", "latency", "params"]:
        """What is bounded."""
        return "macs" if self.macs is not None else "latency" if self.latency is not None else "params"

    @property
    def is_rounded_by_device(self) -> bool:
        """Whether the device that runs the recipe is asked which sizes are fast."""
        return self.round_to == "auto" or (self.round_to is None and self.metric == "latency")

    @property
    def target(self) -> float:
        """The bound, as a fraction of the dense model."""
        bound: float | None = getattr(self, self.metric)
        assert bound is not None
        return bound


class EvaluateConfig(Section):
    """What is measured at the end, beside the budget's own batch size."""

    batch_sizes: tuple[Count, ...] = (1, 8, 32, 256)
    """Batch sizes at which gates that decide for a batch are evaluated."""
    dial: tuple[Fraction, ...] = ()
    """Further budgets, as fractions, at which the gates are calibrated and evaluated again."""
    calibration_images: Count = 2048
    """Training images, with evaluation transforms, on which gates are calibrated."""


class LatencyConfig(Section):
    """How inference time is measured."""

    batch_sizes: tuple[Count, ...] = (1, 32)
    """Batch sizes to time."""
    repeats: Annotated[int, Field(ge=1, le=100_000)] = 20
    """Timed forwards of each."""


class CheckpointConfig(Section):
    """How often a run saves its state. Does not change what it computes."""

    seconds: float = Field(default=120.0, ge=0)
    """At the first step that is this long after the last checkpoint; 0: at every step."""


class Recipe(Section):
    """One run. Relative paths in it (weights, the data's root) are relative to the current directory."""

    name: Name
    """Names the run."""
    note: str | None = None
    """A sentence that the report shows beside the numbers."""
    model: ModelConfig
    """The dense model."""
    data: SourceConfig
    """The images: a mapping with `source` and that source's options."""
    budget: BudgetConfig
    """What the compressed model may cost."""
    seed: Annotated[int, Field(ge=0, lt=2**32)]
    """Seeds everything random."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """auto: CUDA where there is one."""
    threads: Annotated[int, Field(ge=1, le=1024)] | None = None
    """CPU threads; null: torch's own choice."""
    train: TrainConfig
    """How to train."""
    phases: Annotated[tuple[PhaseConfig, ...], Field(min_length=1), WrapValidator(validate_phases)]
    """The run, in order."""
    evaluate: EvaluateConfig = EvaluateConfig()
    """What is measured at the end."""
    controls: tuple[Literal["narrow", "random"], ...] = ()
    """Models trained beside ours for comparison; narrow: a dense model made narrower to the same budget; random: our
    model with random gates at the rates of its own."""
    latency: LatencyConfig = LatencyConfig()
    """How inference time is measured."""
    checkpoint: CheckpointConfig = CheckpointConfig()
    """How often the state is saved."""

    @field_validator("controls")
    @classmethod
    def _each_once(cls, controls: tuple[str, ...]) -> tuple[str, ...]:
        if len(set(controls)) < len(controls):
            msg = "a control is named twice; remove one"
            raise ValueError(msg)
        return controls

    def train_for(self, phase: PhaseConfig) -> TrainConfig:
        """The training options of one phase: the recipe's own with what the phase changes."""
        return phase.training(self.train)
