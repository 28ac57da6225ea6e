"""The training loop of one stage of a run: a phase, or a control that is trained equally long.

What is random in a step is seeded by (seed, update): nothing of the generators' state needs saving, and a run that
goes on from a checkpoint takes the same steps as one that never stopped. Under several processes each takes its rows of
every batch; what strategies and their static gates draw is the same in all of them, what the host's layers draw is not.
"""

from __future__ import annotations

import time
from contextlib import nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import torch
from timm.utils import ModelEmaV3

from usdcore.compiled import CompiledForward, forward_of
from usdcore.engine.buckets import average_step
from usdcore.engine.carry import Carried, put, put_tensors, take
from usdcore.engine.data import EpochOrder, Waited, sample_seed, steps_per_epoch, train_loader
from usdcore.engine.guard import BadNumbers, Guard, NotFinite, Place, agreed, bad_weight, find_cause, gradient_norm
from usdcore.engine.optim import Objective, Schedule, model_optimizer, strategy_optimizer
from usdcore.engine.processes import ALONE
from usdcore.engine.spread import OwnDraws, rows_of
from usdcore.engine.watch import Watch
from usdcore.teachers import primary

if TYPE_CHECKING:
    from collections.abc import Callable, Sized
    from contextlib import AbstractContextManager

    from torch import Tensor

    from usdcore.engine.data import DataSets
    from usdcore.engine.log import RunLog
    from usdcore.engine.processes import Processes
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
    processes: Processes = ALONE


class Keeper(Protocol):
    """Who looks after a stage while it is trained: checkpoints, the last good state, warnings."""

    def begin_epoch(self, fit: Fit) -> None:
        """An epoch begins; every number so far was good."""

    def after_step(self, fit: Fit) -> None:
        """A step was taken."""

    def collapsed(self, fit: Fit, found: list[dict[str, str]]) -> None:
        """An epoch is over, in which these gates did not change what they do."""


@dataclass
class FitState:
    """Where a stage stands: `step` counts within the epoch. `lr_scale` is 1, or 0.5 after a step with bad numbers;
    `averages_on` says that the averaged weights are those of an earlier phase, carried.
    """

    epoch: int = 0
    step: int = 0
    lr_scale: float = 1.0
    averages_on: bool = False


class Fit:
    """Trains `session.model` through a stage. `carried` is what the phase before hands over."""

    def __init__(
        self,
        session: Session,
        stage: Stage,
        around: Surroundings,
        strategies: list[Strategy],
        carried: Carried | None = None,
    ) -> None:
        self.session, self.stage, self.around, self.strategies = session, stage, around, strategies
        self.model = session.model
        self.forward = forward_of(self.model, stage.train.compiles, self._say)
        self.objective = Objective(stage.train, around.data.num_classes)
        self.optimizer = model_optimizer(self.model, stage.train)
        self.strategy_optimizer = strategy_optimizer(session.parameter_groups, stage.train)
        self._strategy_lrs = [group["lr"] for group in self._strategy_groups()]
        groups, own = [*self.optimizer.param_groups, *self._strategy_groups()], set(self.model.parameters())
        self._trained = [p for group in groups for p in group["params"]]
        self._outside = [p for p in self._trained if p not in own]  # what strategies train beside the model
        length = len(_sized(around.data.train))
        self.steps = steps_per_epoch(length, around.data_config.batch_size)
        self.schedule = Schedule(self.optimizer, stage.train, stage.epochs, self.steps)
        world = around.processes.world
        self._rows = rows_of(min(length, around.data_config.batch_size), around.processes.rank, world)
        self.ema = ModelEmaV3(self.model, decay=stage.train.ema) if stage.train.ema else None
        self.state, self.watch = FitState(), Watch(session, around.processes)
        self.sums: dict[str, Tensor] = {}
        self._order: tuple[int, Tensor] | None = None
        #: The share of the last epoch's time that was spent waiting for data.
        self.waited: float | None = None
        if carried is not None:
            self._take_over(carried)
        self._guard()

    def state_dict(self) -> dict[str, Any]:
        """Everything that the rest of the stage depends on. Errors: `BadNumbers`, rather than a state that holds
        them.
        """
        self.guard.settle()
        return {
            **vars(self.state),
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "strategy_optimizer": self.strategy_optimizer.state_dict() if self.strategy_optimizer else None,
            "strategies": {strategy.config.use: strategy.state_dict() for strategy in self.strategies},
            "ema": self.ema.module.state_dict() if self.ema else None,
            "watch": self.watch.state_dict(),
            "sums": self.sums,
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
        self.state = FitState(**{key: state[key] for key in vars(self.state)})
        self.watch.load_state_dict(state["watch"])
        self.sums = {name: total.to(self.around.device) for name, total in state["sums"].items()}
        self._guard()

    def carry(self) -> Carried:
        """What the next phase may go on with; before `finish`."""
        strategies = take(self.strategy_optimizer, self.model) if self.strategy_optimizer else None
        weights = {name: t.detach().clone() for name, t in self.model.state_dict().items()} if self.ema else None
        return Carried(take(self.optimizer, self.model), strategies, weights)

    def run(self, keeper: Keeper) -> None:
        """Train to the end of the stage. Errors: `BadNumbers`."""
        self.model.train()
        while self.state.epoch < self.stage.epochs:
            if self.state.step == 0:
                self.guard.settle()
                keeper.begin_epoch(self)
            self._epoch(keeper)
            self.state.epoch, self.state.step = self.state.epoch + 1, 0
            keeper.after_step(self)

    def finish(self) -> None:
        """The stage is over; the averaged weights, where there are any, are now the model's."""
        if self.ema is not None:
            self.model.load_state_dict(self.ema.module.state_dict())

    @property
    def place(self) -> Place:
        """The step that is being taken."""
        return Place(self.stage.name, self.state.epoch, self.state.step)

    def _epoch(self, keeper: Keeper) -> None:
        around, started, first = self.around, time.perf_counter(), self.state.step
        epoch = self.stage.first_epoch + self.state.epoch
        pin, rows = around.device.type == "cuda", None if around.processes.world == 1 else self._rows
        loader = train_loader(around.data, around.data_config, around.seed, epoch, first, rows=rows, pin_memory=pin)
        images_seen, batches = 0, Waited(loader)
        for images, target in batches:
            terms = self._step(images.to(around.device, non_blocking=True), target.to(around.device, non_blocking=True))
            for name, term in terms.items():
                self.sums[name] = self.sums[name] + term if name in self.sums else term
            self.state.step += 1
            images_seen += len(images) * around.processes.world
            around.log.tick(self.stage.name, self.state.epoch, self.stage.epochs, self.state.step / self.steps)
            if self.state.step < self.steps:
                keeper.after_step(self)
        self._look_at_weights()
        means = {name: float(total) / self.state.step for name, total in self.sums.items()}
        seconds = max(time.perf_counter() - started, 1e-9)
        self.sums, self.waited = {}, batches.seconds / seconds
        rate = images_seen / seconds
        around.log.epoch(self.stage.name, self.state.epoch, self.stage.epochs, means, rate, self.waited)
        keeper.collapsed(self, self.watch.epoch())

    def _look_at_weights(self) -> None:
        """An epoch ends: a step may have been too large for its weights, which no later step has noticed."""
        self.guard.settle()
        weight = bad_weight(self.model)
        if weight is not None:
            place = Place(self.stage.name, self.state.epoch, self.state.step - 1)
            raise BadNumbers(place, f"the weights {weight} are not finite after it")

    def _step(self, images: Tensor, target: Tensor) -> dict[str, Tensor]:
        try:
            loss, terms = self._forward(images, target)
            found = {"loss": loss.detach(), **{name: term.detach() for name, term in terms.items()}}
            if self.around.processes.is_alone:
                self.guard.loss(loss)
            found = self._backward(loss, found)
            self._update(found)
        except NotFinite:
            raise BadNumbers(self.place, self._cause(images, target)) from None
        except Exception as error:  # in the backward, which is compiled when the first step needs it
            if not isinstance(self.forward, CompiledForward) or not self.forward.gives_up(error):
                raise
            return self._step(images, target)
        self.watch.look()
        if len(terms) > 1 and self.session.ctx.spent is not None:
            found["spent"] = self.session.ctx.spent.detach()
        return found

    def _cause(self, images: Tensor, target: Tensor) -> str:
        """What made the numbers bad, in the processes where they are."""
        processes = self.around.processes
        with processes.apart():
            # By the plain model: what was compiled can't be asked for the gradient of each term.
            own = find_cause(self.session, images, lambda: self._forward(images, target, self.model)[1])
        return agreed(processes.exchange(own))

    def _forward(
        self, images: Tensor, target: Tensor, model: Callable[[Tensor], Any] | None = None
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """The loss of a step, and its terms by name: the task's, then the strategies'."""
        update = self.state.epoch * self.steps + self.state.step
        seed = sample_seed(self.around.seed, self.stage.first_epoch + self.state.epoch, -2 - self.state.step)
        torch.manual_seed(seed)
        np.random.seed(seed % 2**32)
        images, target = self.objective.mix(images, target)
        self._set_rates(update)
        ids, steps = self._ids(), self.steps * self.stage.epochs
        self.session.begin_step(update, steps, self.state.epoch, images, _lr(self.optimizer), ids)
        scale = self.session.host_lr
        for group in self.optimizer.param_groups if scale != 1.0 else ():
            group["lr"] *= scale
        with self.around.amp():
            with self._own_draws(seed):
                output = (model or self.forward)(images)
            task = self.objective(primary(output), target)
            extra = self.session.losses(output, target)
            loss = sum(extra.values(), start=self.session.task_weight * task)
        return loss, {"task": task, **extra}

    def _say(self, text: str) -> None:
        self.around.log.say(f"{self.stage.name}: {text}")

    def _own_draws(self, seed: int) -> AbstractContextManager[None]:
        processes = self.around.processes
        if processes.world == 1:
            return nullcontext()
        return OwnDraws(self.model, sample_seed(seed, processes.rank, -1), self.around.device)

    def _backward(self, loss: Tensor, terms: dict[str, Tensor]) -> dict[str, Tensor]:
        """Gradients, and the loss terms: of all processes together where there are several."""
        self.optimizer.zero_grad(set_to_none=True)
        if self.strategy_optimizer:
            self.strategy_optimizer.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        if self.around.processes.is_alone:
            return terms
        terms = average_step(self.around.processes, self.model, self._trained, terms)
        self.guard.loss(terms["loss"])
        return terms

    def _update(self, terms: dict[str, Tensor]) -> None:
        self.guard.gradients(self.place, {k: v for k, v in terms.items() if k != "loss"}, self._clip())
        self.session.after_backward()
        self.optimizer.step()
        if self.strategy_optimizer:
            self.strategy_optimizer.step()
        self.session.after_step()
        self._average(self.state.epoch * self.steps + self.state.step)

    def _clip(self) -> Tensor:
        """The norm of all gradients that train anything, after the model's own were clipped."""
        clip = self.stage.train.clip_grad
        if not clip:
            return gradient_norm(self._trained)
        norm = torch.nn.utils.clip_grad_norm_(self.model.parameters(), clip)
        return norm + gradient_norm(self._outside) if self._outside else norm

    def _set_rates(self, update: int) -> None:
        self.schedule.set(update)
        if self.state.lr_scale != 1.0:
            for group in self.optimizer.param_groups:
                group["lr"] *= self.state.lr_scale
            for group, lr in zip(self._strategy_groups(), self._strategy_lrs, strict=True):
                group["lr"] = lr * self.state.lr_scale

    def _strategy_groups(self) -> list[dict[str, Any]]:
        return self.strategy_optimizer.param_groups if self.strategy_optimizer else []

    def _guard(self) -> None:
        # After one retreat the guard looks at once, so that the error that may follow knows its cause.
        self.guard = Guard(lag=self.around.device.type != "cpu" and self.state.lr_scale == 1.0)

    def _take_over(self, carried: Carried) -> None:
        notes = put(carried.optimizer, self.optimizer, self.model)
        if self.strategy_optimizer and carried.strategies:
            notes += put(carried.strategies, self.strategy_optimizer, self.model)
        if self.ema is not None and carried.weights is not None:
            # The average goes on from the averaged weights, at which the model stands; training from the others.
            put_tensors(carried.weights, self.model)
            self.state.averages_on = True
        for note in notes:
            self.around.log.say(f"optimizer state: {note}")

    def _ids(self) -> Tensor | None:
        """The numbers of this step's images, where they look the same in every epoch."""
        around = self.around
        if around.data_config.augment != "none" or self.objective.mixup is not None:
            return None
        epoch = self.stage.first_epoch + self.state.epoch
        if self._order is None or self._order[0] != epoch:
            order = EpochOrder(len(_sized(around.data.train)), around.seed, epoch)
            self._order = epoch, torch.tensor(list(order))
        first = self.state.step * around.data_config.batch_size
        return self._order[1][[first + row for row in self._rows]]

    def _average(self, update: int) -> None:
        if self.ema is None:
            return
        if len(list(self.ema.module.parameters())) != len(list(self.model.parameters())):
            # A search has settled on its gate networks: the average starts anew with the modules that are left.
            self.ema = ModelEmaV3(self.model, decay=self.stage.train.ema)
        # timm counts the first updates as no average yet, unless it is told no number.
        self.ema.update(self.model, step=None if self.state.averages_on else update)


def _lr(optimizer: torch.optim.Optimizer) -> float:
    return float(optimizer.param_groups[0]["lr"])


def _sized(dataset: Any) -> Sized:
    sized: Sized = dataset
    return sized
