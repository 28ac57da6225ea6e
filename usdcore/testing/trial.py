"""A strategy tried on one of the kit's models: a session, a few steps of training, the end of the phase."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from usdcore.check import NotNeutral, PassedBy
from usdcore.engine.checkpoint import decode, encode
from usdcore.engine.optim import strategy_optimizer
from usdcore.errors import UsdcoreError
from usdcore.plans import Plan
from usdcore.recipe import TrainConfig
from usdcore.runner import CHILD
from usdcore.session import Session
from usdcore.strategy import Budget
from usdcore.surgery import shrink
from usdcore.teachers import primary
from usdcore.testing.laws import Broken, NotTried
from usdcore.testing.models import INPUT, base_of, batch, build

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from usdcore.costs import Cost
    from usdcore.session import PhaseEnd
    from usdcore.strategy import Strategy
    from usdcore.testing.subject import Subject

IMAGES = 16
"""Of the batch of calibration images."""


class Trial:
    """Strategies on one model under the subject's budget. `begin`, `train` and `end` are what a training loop does."""

    def __init__(self, subject: Subject, model_name: str, strategies: Sequence[Strategy] | None = None) -> None:
        self.subject, self.model_name = subject, model_name
        self.strategies = [subject.strategy()] if strategies is None else list(strategies)
        self._start(build(model_name), Plan(base=base_of(model_name)), None)

    def _start(self, model: nn.Module, plan: Plan, dense: Cost | None) -> None:
        ((metric, target),) = self.subject.budget.items()
        budget: Any = Budget(metric, target, batch_size=IMAGES, scope="sample")  # type: ignore[arg-type]
        self.session = Session(model, torch.zeros(1, *INPUT), budget, plan, dense)
        self.session.load_dense = lambda: build(self.model_name)

    @property
    def where(self) -> str:
        """In words."""
        return f"{self.subject.where}, on the kit's model {self.model_name}"

    @property
    def own(self) -> Strategy:
        """The strategy that is tried."""
        return self.strategies[0]

    def begin(self) -> Trial:
        """Attach the strategies. Raises `NotTried` where they can't be: other laws say why."""
        try:
            self.attach()
        except NotNeutral as error:
            raise NotTried(f"{error}: see test_neutral_equals_original") from None
        except PassedBy as error:
            raise NotTried(f"{error}: see test_gates_are_read") from None
        except UsdcoreError as error:
            raise NotTried(f"it was not attached: {error}: see test_neutral_equals_original") from None
        return self

    def attach(self) -> None:
        """Begin a phase. Errors: those of `Session.begin_phase`."""
        torch.manual_seed(0)
        self.session.begin_phase(self.strategies)
        prefix = f"{CHILD}."
        own = [p for name, p in self.session.model.named_parameters() if not name.startswith(prefix)]
        self.optimizer = torch.optim.SGD(own, lr=1e-3, momentum=0.9)
        self.strategy_optimizer = strategy_optimizer(self.session.parameter_groups, TrainConfig(lr=1e-3))

    def train(self, first: int = 0, last: int | None = None) -> Trial:
        """Steps `first` to `last` of a phase of the subject's steps."""
        self.session.model.train()
        for step in range(first, self.subject.steps if last is None else last):
            self.step(step, *batch(step))
        return self

    def step(self, step: int, images: Tensor, target: Tensor) -> None:
        """One step, seeded by its number. Errors: what a strategy raises."""
        self.forward(step, images, target).backward()  # type: ignore[no-untyped-call]
        self.update()

    def forward(self, step: int, images: Tensor, target: Tensor) -> Tensor:
        """The loss of a step; gradients are empty."""
        torch.manual_seed(step)
        numbers = torch.arange(len(images))
        self.session.begin_step(step, self.subject.steps, 0, images, lr=1e-3, ids=numbers)
        output = self.session.model(images)
        task = nn.functional.cross_entropy(primary(output), target)
        self.terms = self.session.losses(output, target)
        for optimizer in self._optimizers():
            optimizer.zero_grad(set_to_none=True)
        return torch.stack([self.session.task_weight * task, *self.terms.values()]).sum()

    def update(self) -> None:
        """What follows the gradients."""
        self.session.after_backward()
        for optimizer in self._optimizers():
            optimizer.step()
        self.session.after_step()

    def end(self) -> PhaseEnd:
        """Decide and shrink. Raises `NotTried` where that is an error: the law of the budget says why."""
        try:
            return self.session.end_phase(self.calibration)
        except UsdcoreError as error:
            raise NotTried(f"the phase did not end well: {error}: see test_meets_the_budget") from None

    def calibration(self) -> Iterator[Tensor]:
        """The calibration images, one batch."""
        yield batch(1001, IMAGES)[0]

    def run(self) -> Trial:
        """A phase from its beginning to its end, with the gates' threshold turned to the budget."""
        self.begin().train().end()
        self.session.calibrate(self.calibration)
        return self

    def state(self) -> dict[str, Any]:
        """What the engine saves inside a phase, as it is saved."""
        state = {
            "strategies": [strategy.state_dict() for strategy in self.strategies],
            "model": self.session.model.state_dict(),
            "optimizers": [optimizer.state_dict() for optimizer in self._optimizers()],
        }
        return written(state, self.where)

    def load(self, state: dict[str, Any]) -> Trial:
        """Go on from what `state` gave; the phase has begun."""
        for strategy, saved in zip(self.strategies, state["strategies"], strict=True):
            strategy.load_state_dict(saved)
        self.session.model.load_state_dict(state["model"])
        for optimizer, saved in zip(self._optimizers(), state["optimizers"], strict=True):
            optimizer.load_state_dict(saved)
        return self

    def _optimizers(self) -> list[torch.optim.Optimizer]:
        return [optimizer for optimizer in (self.optimizer, self.strategy_optimizer) if optimizer is not None]

    def between(self) -> dict[str, Any]:
        """What the engine saves between two phases."""
        state = {
            "strategies": [strategy.state_dict() for strategy in self.strategies],
            "model": self.session.model.state_dict(),
            "plan": self.session.plan.model_dump_json(),
        }
        return written(state, self.where)

    def go_on(self, state: dict[str, Any]) -> Trial:
        """A trial made anew takes over what `between` gave: strategies first, then the smaller model with its gates."""
        dense = self.session.dense
        for strategy, saved in zip(self.strategies, state["strategies"], strict=True):
            strategy.load_state_dict(saved)
        plan = Plan.model_validate_json(state["plan"])
        model = shrink(build(self.model_name, seed=1), plan)
        model.load_state_dict(state["model"])
        self._start(model, plan, dense)
        self.session.known = {strategy.config.use: strategy for strategy in self.strategies}
        return self


def written(state: dict[str, Any], where: str) -> dict[str, Any]:
    """A state as it comes back from a file. Raises `Broken` for what no file can hold."""
    tensors: dict[str, Tensor] = {}
    try:
        text = json.dumps(encode(state, tensors), allow_nan=False)
    except (TypeError, ValueError) as error:
        what = f"state_dict() holds what a checkpoint can't: {error}"
        do = "keep tensors, numbers, strings, None, lists, tuples and dicts of these alone"
        raise Broken(where, what, do) from None
    held = {name: tensor.detach().clone() for name, tensor in tensors.items()}
    read: dict[str, Any] = decode(json.loads(text), held)
    return read
