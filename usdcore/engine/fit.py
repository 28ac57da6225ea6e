"""The training loop of one stage of a run: a phase, or a control that is trained equally long.

What is random in a step is seeded by (seed, update): nothing of the generators' state needs saving, and a run that
goes on from a checkpoint takes the same steps as one that never stopped.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from timm.utils import ModelEmaV3

from usdcore.engine.data import EpochOrder, sample_seed, steps_per_epoch, train_loader
from usdcore.engine.optim import Objective, Schedule, check_finite, model_optimizer, strategy_optimizer
from usdcore.teachers import primary

if TYPE_CHECKING:
    from collections.abc import Callable, Sized

    from torch import Tensor

    from usdcore.engine.data import DataSets
    from usdcore.engine.log import RunLog
    from usdcore.recipe import DataConfig, TrainConfig
    from usdcore.session import Session
    from usdcore.strategy import Strategy


@dataclass(frozen=True)
class Stage:
    """What to train: `first_epoch` counts over the whole run, so that no two stages see the same augmentation."""

    name: str
    epochs: int
    train: TrainConfig
    first_epoch: int


@dataclass(frozen=True)
class Surroundings:
    """What every stage of a run shares."""

    data: DataSets
    data_config: DataConfig
    seed: int
    device: torch.device
    log: RunLog
    amp: Callable[[], Any]


@dataclass
class FitState:
    """Where a stage stands: `step` counts within the epoch."""

    epoch: int = 0
    step: int = 0


class Fit:
    """Trains `session.model` through a stage. `checkpoint` is called after every step and decides whether to write."""

    def __init__(self, session: Session, stage: Stage, around: Surroundings, strategies: list[Strategy]) -> None:
        self.session, self.stage, self.around, self.strategies = session, stage, around, strategies
        self.model = session.model
        self.objective = Objective(stage.train, around.data.num_classes)
        self.optimizer = model_optimizer(self.model, stage.train)
        self.strategy_optimizer = strategy_optimizer(session.parameter_groups, stage.train)
        length = len(_sized(around.data.train))
        self.steps = steps_per_epoch(length, around.data_config.batch_size)
        self.schedule = Schedule(self.optimizer, stage.train, stage.epochs, self.steps)
        self.ema = ModelEmaV3(self.model, decay=stage.train.ema) if stage.train.ema else None
        self.state = FitState()
        self.last_loss: Tensor | None = None
        self._order: tuple[int, Tensor] | None = None

    def state_dict(self) -> dict[str, Any]:
        """Everything that the rest of the stage depends on. Errors: a last loss that is no number."""
        if self.last_loss is not None:
            check_finite(float(self.last_loss), f"{self.stage.name}, epoch {self.state.epoch}, step {self.state.step}")
        return {
            "epoch": self.state.epoch,
            "step": self.state.step,
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "strategy_optimizer": self.strategy_optimizer.state_dict() if self.strategy_optimizer else None,
            "strategies": {strategy.config.use: strategy.state_dict() for strategy in self.strategies},
            "ema": self.ema.module.state_dict() if self.ema else None,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from a checkpoint of this stage."""
        for strategy in self.strategies:
            strategy.load_state_dict(state["strategies"][strategy.config.use])
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        if self.strategy_optimizer:
            self.strategy_optimizer.load_state_dict(state["strategy_optimizer"])
        if self.stage.train.ema:
            self.ema = ModelEmaV3(self.model, decay=self.stage.train.ema)
            self.ema.module.load_state_dict(state["ema"])
        self.state = FitState(state["epoch"], state["step"])

    def run(self, checkpoint: Callable[[], None]) -> None:
        """Train to the end of the stage; the averaged weights, where there are any, are then the model's."""
        self.model.train()
        while self.state.epoch < self.stage.epochs:
            self._epoch(checkpoint)
            self.state.epoch, self.state.step = self.state.epoch + 1, 0
            checkpoint()
        if self.ema is not None:
            self.model.load_state_dict(self.ema.module.state_dict())

    def _epoch(self, checkpoint: Callable[[], None]) -> None:
        around, started = self.around, time.perf_counter()
        epoch = self.stage.first_epoch + self.state.epoch
        pin = around.device.type == "cuda"
        loader = train_loader(
            around.data, around.data_config, around.seed, epoch, start_step=self.state.step, pin_memory=pin
        )
        sums: dict[str, Tensor] = {}
        seen = images_seen = 0
        for images, target in loader:
            terms = self._step(images.to(around.device, non_blocking=True), target.to(around.device, non_blocking=True))
            self.last_loss = terms["loss"]
            for name, term in terms.items():
                sums[name] = sums[name] + term if name in sums else term
            self.state.step += 1
            seen, images_seen = seen + 1, images_seen + len(images)
            around.log.tick(self.stage.name, self.state.epoch, self.stage.epochs, self.state.step / self.steps)
            if self.state.step < self.steps:
                checkpoint()
        means = {name: float(total) / max(seen, 1) for name, total in sums.items()}
        check_finite(means.get("loss", 0.0), f"phase {self.stage.name}, epoch {self.state.epoch}")
        seconds = time.perf_counter() - started
        around.log.epoch(self.stage.name, self.state.epoch, self.stage.epochs, means, images_seen / max(seconds, 1e-9))

    def _step(self, images: Tensor, target: Tensor) -> dict[str, Tensor]:
        update = self.state.epoch * self.steps + self.state.step
        seed = sample_seed(self.around.seed, self.stage.first_epoch + self.state.epoch, -2 - self.state.step)
        torch.manual_seed(seed)
        np.random.seed(seed % 2**32)
        images, target = self.objective.mix(images, target)
        self.schedule.set(update)
        ids, steps = self._ids(len(images)), self.steps * self.stage.epochs
        self.session.begin_step(update, steps, self.state.epoch, images, ids)
        with self.around.amp():
            output = self.model(images)
            task = self.objective(primary(output), target)
            extra = self.session.losses(output, target)
            loss = sum(extra.values(), start=self.session.task_weight * task)
        self.optimizer.zero_grad(set_to_none=True)
        if self.strategy_optimizer:
            self.strategy_optimizer.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        if self.stage.train.clip_grad:
            torch.nn.utils.clip_grad_norm_(self.model.parameters(), self.stage.train.clip_grad)
        self.session.after_backward()
        self.optimizer.step()
        if self.strategy_optimizer:
            self.strategy_optimizer.step()
        self.session.after_step()
        self._average(update)
        return self._terms(loss, task, extra)

    def _ids(self, number: int) -> Tensor | None:
        """The numbers of this step's images, where they look the same in every epoch."""
        around = self.around
        if around.data_config.augment != "none" or self.objective.mixup is not None:
            return None
        epoch = self.stage.first_epoch + self.state.epoch
        if self._order is None or self._order[0] != epoch:
            order = EpochOrder(len(_sized(around.data.train)), around.seed, epoch)
            self._order = epoch, torch.tensor(list(order))
        first = self.state.step * around.data_config.batch_size
        return self._order[1][first : first + number]

    def _average(self, update: int) -> None:
        if self.ema is None:
            return
        if len(list(self.ema.module.parameters())) != len(list(self.model.parameters())):
            # A search has settled on its gate networks: the average starts anew with the modules that are left.
            self.ema = ModelEmaV3(self.model, decay=self.stage.train.ema)
        self.ema.update(self.model, step=update)

    def _terms(self, loss: Tensor, task: Tensor, extra: dict[str, Tensor]) -> dict[str, Tensor]:
        terms = {"loss": loss.detach(), "task": task.detach(), **{k: v.detach() for k, v in extra.items()}}
        if extra and self.session.ctx.spent is not None:
            terms["spent"] = self.session.ctx.spent.detach()
        return terms


def _sized(dataset: Any) -> Sized:
    sized: Sized = dataset
    return sized
