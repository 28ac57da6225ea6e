"""Optimizer, schedule, loss and mixup, all timm's; the recipe's training keys bear timm's argument names."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from timm.data import Mixup
from timm.loss import LabelSmoothingCrossEntropy, SoftTargetCrossEntropy
from timm.optim import create_optimizer_v2, list_optimizers, param_groups_weight_decay
from timm.scheduler import create_scheduler_v2

from usdcore.errors import UsdcoreError, nearest
from usdcore.runner import CHILD

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor, nn

    from usdcore.recipe import TrainConfig
    from usdcore.strategy import ParameterGroup


def model_optimizer(model: nn.Module, train: TrainConfig) -> torch.optim.Optimizer:
    """timm's optimizer over the model's own parameters; 1-d ones are not decayed. Gates belong to their strategies."""
    if train.opt not in list_optimizers():
        msg = f"train.opt: timm has no optimizer {train.opt!r}: {nearest(train.opt, list_optimizers())}"
        raise UsdcoreError(msg)
    skip: set[str] = getattr(model, "no_weight_decay", set)()
    own = _WithoutGates(model)
    groups = param_groups_weight_decay(own, train.weight_decay, no_weight_decay_list=skip)
    optimizer: torch.optim.Optimizer = create_optimizer_v2(
        groups, opt=train.opt, lr=train.lr, weight_decay=train.weight_decay, momentum=train.momentum
    )
    return optimizer


class _WithoutGates:
    """`named_parameters` of a model less those of its gates, which is all that timm's grouping asks of a model."""

    def __init__(self, model: nn.Module) -> None:
        self._model = model

    def named_parameters(self) -> list[tuple[str, nn.Parameter]]:
        prefix = f"{CHILD}."
        return [(name, p) for name, p in self._model.named_parameters() if not name.startswith(prefix)]


def strategy_optimizer(groups: Sequence[ParameterGroup], train: TrainConfig) -> torch.optim.Optimizer | None:
    """Adam over what the strategies train, at their own constant learning rates; None where they train nothing."""
    stated: list[dict[str, Any]] = [
        {
            "params": group.parameters,
            "lr": group.lr if group.lr is not None else train.lr * group.lr_mult,
            "weight_decay": group.weight_decay,
        }
        for group in groups
        if group.parameters
    ]
    return torch.optim.AdamW(stated, weight_decay=0.0) if stated else None


class Schedule:
    """timm's learning-rate schedule by update, warm-up included."""

    def __init__(self, optimizer: torch.optim.Optimizer, train: TrainConfig, epochs: int, steps_per_epoch: int) -> None:
        # timm has no constant schedule with a warm-up: a step that never comes is one.
        shape = {"sched": "step", "decay_epochs": epochs + 1} if train.sched == "none" else {"sched": train.sched}
        self.scheduler, _ = create_scheduler_v2(
            optimizer,
            num_epochs=max(1, epochs),
            warmup_epochs=min(train.warmup_epochs, epochs),
            warmup_lr=train.warmup_lr,
            min_lr=train.min_lr,
            step_on_epochs=False,
            updates_per_epoch=steps_per_epoch,
            warmup_prefix=False,  # the epochs include the warm-up, and the rate ends at min_lr
            **shape,
        )

    def set(self, update: int) -> None:
        """The rate for this update, counted from 0 in the phase."""
        self.scheduler.step_update(update)


class Objective:
    """The task's loss, with timm's mixup and cutmix where the recipe asks for them."""

    def __init__(self, train: TrainConfig, num_classes: int) -> None:
        self.mixup = None
        if train.mixup > 0 or train.cutmix > 0:
            self.mixup = Mixup(
                mixup_alpha=train.mixup,
                cutmix_alpha=train.cutmix,
                label_smoothing=train.smoothing,
                num_classes=num_classes,
            )
            self.loss: nn.Module = SoftTargetCrossEntropy()
        elif train.smoothing > 0:
            self.loss = LabelSmoothingCrossEntropy(train.smoothing)
        else:
            self.loss = torch.nn.CrossEntropyLoss()

    def mix(self, images: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
        """Mixed images and soft targets; numpy's global generator must be seeded by the caller. Odd batches stay as
        they are.
        """
        if self.mixup is None:
            return images, target
        if len(images) % 2:
            target = torch.nn.functional.one_hot(target, self.mixup.num_classes).to(images.dtype)
            return images, target
        # A copy, as timm mixes in place, and a step may be taken again.
        mixed: tuple[Tensor, Tensor] = self.mixup(images.clone(), target)
        return mixed

    def __call__(self, output: Tensor, target: Tensor) -> Tensor:
        """Mean loss of a batch, shape []."""
        value: Tensor = self.loss(output, target)
        return value
