"""From a recipe to live objects: the device, the model with its weights, the strategies, the budget."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import TYPE_CHECKING, Any

import timm
import torch

from usdcore.artifact import constructor_kwargs, create
from usdcore.backbones import require_model
from usdcore.engine.weights import fill, read_weights
from usdcore.errors import UsdcoreError
from usdcore.hooks import registry
from usdcore.plans import Base
from usdcore.strategy import Budget

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import nn

    from usdcore.costs import Metric
    from usdcore.engine.data import DataSets
    from usdcore.recipe import BudgetConfig, ModelConfig, Recipe
    from usdcore.strategy import Strategy


def uses_cuda(recipe: Recipe) -> bool:
    """Whether a run takes CUDA, if it can."""
    return recipe.device != "cpu" and torch.cuda.is_available()


def pick_device(recipe: Recipe, local_rank: int = 0, world: int = 1) -> torch.device:
    """`auto` takes CUDA where there is one, of several processes each its own. Also sets the number of CPU threads.
    Errors: CUDA asked for and not there; fewer devices than processes on this machine.
    """
    if recipe.threads is not None:
        torch.set_num_threads(recipe.threads)
    if recipe.device == "cuda" and not torch.cuda.is_available():
        msg = "device: cuda was asked for, but torch sees no CUDA device; use device: auto or cpu"
        raise UsdcoreError(msg)
    if not uses_cuda(recipe):
        return torch.device("cpu")
    if world == 1:
        return torch.device("cuda")
    if local_rank >= torch.cuda.device_count():
        msg = (
            f"there is no CUDA device for process {local_rank} of this machine, which has {torch.cuda.device_count()}; "
            "start as many processes as there are devices, or set device: cpu"
        )
        raise UsdcoreError(msg)
    torch.cuda.set_device(local_rank)
    return torch.device("cuda", local_rank)


def autocast(device: torch.device, amp: str) -> Callable[[], Any]:
    """A context for each forward: bf16 autocast, or nothing."""
    if amp == "bf16":
        return lambda: torch.autocast(device.type, dtype=torch.bfloat16)
    return contextlib.nullcontext


def load_data(recipe: Recipe) -> DataSets:
    """The recipe's data. Errors: the source's own, and classes that do not match the model's."""
    source = registry().load("data-source", recipe.data.source)
    data: DataSets = source(recipe.data).load()
    if data.num_classes != recipe.model.num_classes:
        msg = (
            f"the data has {data.num_classes} classes ({data.description}), but model.num_classes is "
            f"{recipe.model.num_classes}: set model.num_classes to {data.num_classes}"
        )
        raise UsdcoreError(msg)
    return data


def make_base(model: ModelConfig, input_size: int, in_chans: int) -> Base:
    """The base of the run's plan. `img_size` and `in_chans` are given to timm where they differ from its defaults."""
    kwargs = dict(model.kwargs)
    try:
        require_model(model.name)
    except UsdcoreError as error:
        msg = f"model.name: {error}"
        raise UsdcoreError(msg) from error
    config = timm.models.get_pretrained_cfg(model.name)
    default = config.input_size if config is not None else (3, 224, 224)
    if input_size != default[-1]:
        kwargs.setdefault("img_size", input_size)
    if in_chans != default[0]:
        kwargs.setdefault("in_chans", in_chans)
    return Base(
        name=model.name, kwargs=kwargs, num_classes=model.num_classes, input_shape=(in_chans, input_size, input_size)
    )


def build_model(base: Base, model: ModelConfig) -> nn.Module:
    """The dense model: fresh, timm's pretrained, or with the user's own weights."""
    if model.weights is not None:
        built = create(base)
        path = Path(model.weights)
        fill(built, read_weights(path, "model.weights"), f"model.weights: {path}")
        return built
    if model.pretrained:
        kwargs = constructor_kwargs(base)
        try:
            pretrained: nn.Module = timm.create_model(
                base.name, pretrained=True, num_classes=base.num_classes, **kwargs
            )
        except Exception as error:  # the hub raises many kinds; each means the same to the user
            msg = f"model.pretrained: the weights of {base.name} can't be fetched ({error}); give model.weights: FILE"
            raise UsdcoreError(msg) from error
        return pretrained
    return create(base)


def make_budget(budget: BudgetConfig) -> Budget:
    """The recipe's budget as the session takes it. One of time is one of MACs there: of as large a share, until
    measurements find a better one (see `engine.timed`). Sizes that the device has to be asked for are any.
    """
    metric: Metric = "params" if budget.metric == "params" else "macs"
    step = budget.round_to if isinstance(budget.round_to, int) else 1
    return Budget(metric, budget.target, budget.batch_size, budget.scope, budget.static, step)


class Strategies:
    """The strategies of a run by name: one named again in a later phase is the same object, with its mutable options
    renewed.
    """

    def __init__(self) -> None:
        self.made: dict[str, Strategy] = {}

    def of(self, configs: Any) -> list[Strategy]:
        """The objects that a phase names, in its order."""
        phase = []
        for config in configs:
            if config.use in self.made:
                self.made[config.use].config = config
            else:
                self.made[config.use] = registry().load("strategy", config.use)(config)
            phase.append(self.made[config.use])
        return phase
