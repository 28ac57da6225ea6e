"""A model, a budget and strategies, for any training loop.

    session = Session(model, images, Budget("macs", 0.5, batch_size=32), plan)
    session.begin_phase([strategy, ...])
    for step, (images, target) in enumerate(loader):
        session.begin_step(step, num_steps, images=images)   # session.host_lr then scales the optimizer's rate
        output = session.model(images)
        loss = session.task_weight * criterion(primary(output), target) + session.loss(output, target)
        loss.backward(); session.after_backward(); optimizer.step(); session.after_step()
    session.end_phase(batches)          # decides, really shrinks, and puts the gates back
    session.calibrate(batches)          # the gates' threshold, to meet the budget

`batches` is a function that yields batches of calibration images of the budget's batch size.
"""

from __future__ import annotations

import copy
import math
from contextlib import nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor, nn

from usdcore.check import outputs, require_neutral
from usdcore.costs import Cost, Tree, cost
from usdcore.decisions import require_met, require_no_reader, scores_of
from usdcore.errors import UsdcoreError
from usdcore.gates import Gating
from usdcore.measure import Calibration, Execution, calibrate, execute, steady_rates
from usdcore.nesting import continued
from usdcore.owngroups import extended
from usdcore.plans import Drop, Plan
from usdcore.projection import Limits, Projection, Projector
from usdcore.reach import least_left, require_reachable
from usdcore.runner import attach, detach, gating_of
from usdcore.steps import rounded_sizes
from usdcore.strategy import Attachment, Budget, ParameterGroup, StepContext, Strategy, unchanged
from usdcore.surgery import attach_plan, kept_positions, shrink_found
from usdcore.teachers import Teacher, primary
from usdcore.units import find_units

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence
    from contextlib import AbstractContextManager

    from usdcore.gates import Gate
    from usdcore.plans import Keep
    from usdcore.surgery import Positions

    Batches = Callable[[], Iterable[Tensor]]


@dataclass(frozen=True)
class PhaseEnd:
    """What the end of a phase found: gate rates, and (where something static was decided) the projection.

    `searched` is the share of the dense model that the search itself came to, by its own signs, before projection.
    `notes` are what strategies say that the numbers do not show.
    """

    execution: Execution
    projection: Projection | None
    searched: float | None
    notes: tuple[str, ...] = ()


class Session:
    """The seam between strategies and a training loop. `model` is replaced by a smaller one at the end of a phase.

    `example_inputs` [B, C, H, W] is used for its shape. `dense` is the cost that shares refer to: the given model's own
    unless it was shrunk before.
    """

    def __init__(
        self,
        model: nn.Module,
        example_inputs: Tensor,
        budget: Budget,
        plan: Plan | None = None,
        dense: Cost | None = None,
    ) -> None:
        self.model = model
        self.budget = budget
        self.plan = plan or Plan()
        self.example_inputs = example_inputs[:1].to("meta")
        gating = detach(model)
        self.units = find_units(model, self.example_inputs)
        if gating is not None:
            self.units = extended(self.units, gating.groups(model, self.units))
            attach(model, self.units, gating)
        self.dense = dense or cost(self.units)
        self.strategies: list[Strategy] = []
        #: Every strategy that was ever named, by name: the gates of those that a phase does not name stay theirs.
        self.known: dict[str, Strategy] = {}
        #: A context for each forward on calibration images, as evaluation will use (autocast, or nothing).
        self.amp: Callable[[], AbstractContextManager[Any]] = nullcontext
        #: How calibration images are run, and a tensor's mean over all processes: for a loop that runs in several.
        self.execute: Callable[..., Execution] = execute
        self.mean: Callable[[Tensor], Tensor] = unchanged
        #: The dense model, from where it was put aside; without it the model itself is copied, while it is dense.
        self.load_dense: Callable[[], nn.Module] | None = None
        #: Strategies are only asked whether they fit (see `Attachment.is_dry`), and not held to what they promise.
        self.is_dry = False
        #: For a budget of time: what chooses among projections by a share of MACs.
        self.settle_time: Callable[[Session, Callable[[float], Projection]], Projection] | None = None
        self.parameter_groups: list[ParameterGroup] = []
        self.ctx = StepContext()
        #: Which strategy gave each loss term of the last step.
        self.owners: dict[str, str] = {}
        #: What the last surgery kept of each tensor, for what else has its shape (an optimizer's moments).
        self.slices: Positions = {}
        self.teachers: dict[str, Teacher] = {}
        self._endings: list[Callable[[], None]] = []
        self._fewest: dict[str, int] = {}  # of groups about which strategies decide without gates
        self._tree = Tree(self.units, budget.metric)

    @property
    def gating(self) -> Gating | None:
        """The gates now on the model."""
        return gating_of(self.model)

    @property
    def dense_total(self) -> int:
        """The dense model's cost in the budget's metric."""
        return self.dense.macs if self.budget.metric == "macs" else self.dense.params

    def begin_phase(self, strategies: Sequence[Strategy]) -> None:
        """Attach the strategies, and check that with neutral gates the model is still the host, in both modes.

        Errors: two strategies at one site that do not compose, a model that is more than the sum of its branches, a
        budget that can't be reached.
        """
        gating = detach(self.model) or Gating()
        self._leave()
        input_shape = tuple(self.example_inputs.shape[1:])
        site = Attachment(self.model, self.units, self.budget, self.plan, gating, self._teacher, input_shape)
        site.is_dry, self._endings = self.is_dry, site.endings
        site.dense_total = self.dense_total
        self.known |= {strategy.config.use: strategy for strategy in strategies}
        self._renew_gates(gating)
        for strategy in self.known.values():
            for gate in strategy.gates.values():
                site.claim(strategy, gate)
        try:
            for strategy in strategies:
                site.current = strategy
                strategy.attach(site)
        except UsdcoreError:
            self._leave()
            raise
        require_no_reader(gating, site.fewest)
        self.strategies = list(strategies)
        self.parameter_groups, self._fewest = site.parameter_groups, site.fewest
        if len(gating.gates):
            host = outputs(self.model, input_shape) if strategies else {}
            self.units = extended(self.units, gating.groups(self.model, self.units))
            attach(self.model, self.units, gating.train(self.model.training))
            self._tree = Tree(self.units, self.budget.metric, gating.prices)
            if strategies:
                require_neutral(self.model, gating, self.units, input_shape, host)
        # A strategy that decides without gates and does not say about what says only in the end what it may remove.
        deciding = [s for s in strategies if not s.gates and type(s).decide is not Strategy.decide and s.shrinks]
        silent = [s for s in deciding if s not in site.deciding]
        if (len(gating.gates) or site.deciding) and strategies and not silent:
            require_reachable(self.least(), self.budget)

    def begin_step(
        self,
        step: int,
        num_steps: int,
        epoch: int = 0,
        images: Tensor | None = None,
        lr: float | None = None,
        ids: Tensor | None = None,
    ) -> None:
        """Before the forward of a step. `images` are its inputs, which a teacher needs; `lr` is the schedule's, which a
        proximal step needs; `ids` [B] (on the CPU) the images' numbers in the training set, if they look the same in
        every epoch.
        """
        self.ctx = StepContext(step, num_steps, epoch, images, lr, ids, mean=self.mean)
        self.ctx.lr = None if lr is None else lr * self.host_lr
        for strategy in self.strategies:
            strategy.begin_step(self.ctx)

    @property
    def task_weight(self) -> float:
        """What the strategies want the task's own loss multiplied by."""
        return math.prod(strategy.task_weight() for strategy in self.strategies)

    @property
    def host_lr(self) -> float:
        """What the strategies want the learning rate of the model's own weights multiplied by, once a step began."""
        return math.prod(strategy.host_lr(self.ctx) for strategy in self.strategies)

    def losses(self, output: Tensor | tuple[Tensor, ...], target: Tensor) -> dict[str, Tensor]:
        """The strategies' loss terms by name, after the forward. Two strategies' terms must have different names."""
        gating = self.gating
        self.ctx.outputs = (output,) if isinstance(output, Tensor) else tuple(output)
        self.ctx.output, self.ctx.target = self.ctx.outputs[0], target
        if gating is not None:
            self.ctx.spent, self.ctx.spent_static = self._spent(gating)
        terms: dict[str, Tensor] = {}
        for strategy in self.strategies:
            for name, term in strategy.losses(self.ctx).items():
                if name in terms:
                    msg = f"two strategies give a loss term named {name!r}"
                    raise UsdcoreError(msg)
                terms[name] = term
                self.owners[name] = strategy.config.use
        return terms

    def loss(self, output: Tensor | tuple[Tensor, ...], target: Tensor) -> Tensor:
        """The sum of `losses`, shape []."""
        return torch.stack([primary(output).new_zeros(()), *self.losses(output, target).values()]).sum()

    def after_backward(self) -> None:
        """Between backward and the optimizer's step."""
        for strategy in self.strategies:
            strategy.after_backward(self.ctx)

    def after_step(self) -> None:
        """After the optimizer's step."""
        for strategy in self.strategies:
            strategy.after_step(self.ctx)

    def execution(self, batches: Batches) -> Execution:
        """What the gated model executes on calibration images."""
        return self.execute(self.model, self.units, self.gating, batches(), self.amp)

    def end_phase(self, batches: Batches) -> PhaseEnd:
        """Measure gate rates, choose what goes to meet the budget, shrink the model, keep the gates that stay."""
        self._leave()
        decisions = [strategy.decide() for strategy in self.strategies]
        execution = self.execution(batches)
        rates = steady_rates(self.gating, execution, lambda: self.execution(batches))
        drops = tuple(dict.fromkeys([*(d for decision in decisions for d in decision.drops), *_never(rates)]))
        scores = scores_of(decisions)
        sizes = rounded_sizes(self.units, scores, self.budget.round_to)
        sizes |= {name: allowed for decision in decisions for name, allowed in decision.sizes.items()}
        bounds = [self.budget.static, *(decision.static for decision in decisions)]
        static_share = min((bound for bound in bounds if bound is not None), default=None)
        projection = self._project(scores, execution, drops, sizes, static_share)
        if projection is None:
            static: list[Keep | Drop] = [Drop(branch=name) for name in drops]
            is_dynamic = execution.is_dynamic and self.budget.metric == "macs"
            searched = execution.macs / self.dense.macs if is_dynamic else None
            if any(decision.within is not None for decision in decisions):
                searched = self._tree.decided(dict.fromkeys(drops, 0)) / self.dense_total
        else:
            static = projection.records
            is_ranking = all(decision.ranking for decision in decisions if decision.scores)
            searched = None if is_ranking else (projection.before + self._gate_cost()) / self.dense_total
        if searched is not None and not execution.is_dynamic and not self.is_dry:
            require_met(decisions, searched, self.budget.target)
        self._apply(static, rates, settle=False)
        notes = tuple(decision.note for decision in decisions if decision.note)
        return PhaseEnd(execution, projection, searched, notes)

    def calibrate(self, batches: Batches, target: float | None = None, tolerance: float = 0.0005) -> Calibration | None:
        """Set the gates' threshold so that `target` (a share of the dense MACs; default: the budget) is executed.

        None where there are no gates or the budget is one that gates can't change (parameters).
        """
        gating = self.gating
        if gating is None or self.budget.metric != "macs":
            return None
        share = self.budget.target if target is None else target
        macs = self.dense.macs
        found = calibrate(gating, lambda: self.execution(batches), share * macs, tolerance * macs)
        self.plan = self.plan.without_gates().then(
            record.model_copy(update={"config": {**record.config, "threshold": found.threshold}})
            if cast("Gate", gating.gates[record.key]).is_dialled
            else record
            for record in self.plan.attached.values()
        )
        return found

    def settle(self, batches: Batches) -> None:
        """The run is at its end: a branch never on over the calibration images is dropped, a gate always on goes."""
        if self.gating is not None:
            rates = steady_rates(self.gating, self.execution(batches), lambda: self.execution(batches))
            self._apply([Drop(branch=name) for name in _never(rates)], rates, settle=True)

    def _teacher(self, key: str, build: Callable[[], nn.Module] | None) -> Teacher:
        if key not in self.teachers:
            device = next(self.model.parameters()).device
            # A run that goes on makes its teachers anew: what is drawn after that must not depend on it.
            with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
                self.teachers[key] = Teacher((build or self._dense_model)().to(device))
        return self.teachers[key]

    def _dense_model(self) -> nn.Module:
        if self.load_dense is not None:
            return self.load_dense()
        if self.plan.records:
            msg = "the dense model is gone: name the strategy that learns from it in the first phase that compresses"
            raise UsdcoreError(msg)
        return copy.deepcopy(self.model)

    def _leave(self) -> None:
        """Undo what strategies did to the host for the length of a phase, the last first."""
        while self._endings:
            self._endings.pop()()

    def _spent(self, gating: Gating) -> tuple[Tensor, Tensor]:
        state, scale = gating.state, self._tree.total / self.dense_total
        device = next(self.model.parameters()).device
        static = self._tree.expected(state.static, device) * scale
        if self.budget.metric == "params":
            static = static + self._gate_cost() / self.dense_total
            return static, static
        gates = gating.macs() / self.dense.macs
        if not (state.dynamic or state.counts):  # static gates draw the same in every process
            return static + gates, static + gates
        spent = self._tree.expected(state.keeps(), device, state.counts) * scale + gates, static + gates
        return cast("tuple[Tensor, Tensor]", self.mean(torch.stack(spent)).unbind())

    def _gate_cost(self) -> int:
        """What the dynamic gates themselves cost in the budget's metric."""
        gating = self.gating
        if gating is None:
            return 0
        if self.budget.metric == "macs":
            return gating.count_macs()
        dynamic = [gate for gate in gating.all() if gate.scope != "static"]
        return sum(parameter.numel() for gate in dynamic for parameter in gate.parameters())

    def _project(
        self,
        scores: Mapping[str, Any],
        execution: Execution,
        drops: tuple[str, ...],
        sizes: dict[str, tuple[int, ...]],
        static_share: float | None,
    ) -> Projection | None:
        if not scores:
            return None
        spare = self._gate_cost()
        static = None if static_share is None else static_share * self.dense_total - spare
        tree = self._tree.with_tokens(execution.tokens) if self._tree.prices else self._tree
        projector = Projector(self.units, tree, scores, execution.rates, sizes)

        def at(share: float) -> Projection:
            return projector.project(Limits(share * self.dense_total - spare, static), drops)

        return at(self.budget.target) if self.settle_time is None else self.settle_time(self, at)

    def _apply(self, static: Sequence[Keep | Drop], rates: dict[str, float], settle: bool) -> None:
        """Replace the model by a smaller one; weights, and the gates that stay, carry over."""
        gone = {record.branch for record in static if isinstance(record, Drop)}
        attached = [r for s in self.known.values() for r in s.records(gone, rates, settle)]
        attached += [record for record in self.plan.attached.values() if record.plugin not in self.known]
        training, old, cut = self.model.training, detach(self.model), Plan(records=tuple(static))
        self.plan = continued(self.plan.without_gates(), [*static, *attached], self.units)
        self.slices = kept_positions(self.units, cut)
        self.model, self.units = shrink_found(self.model, self.units, cut, self.example_inputs)
        self.model.train(training)
        attach_plan(self.model, self.units, self.plan, {name: type(made) for name, made in self.known.items()})
        if self.gating is not None:
            self.units = extended(self.units, self.gating.groups(self.model, self.units))
        self._tree = Tree(self.units, self.budget.metric, self.gating.prices if self.gating is not None else {})
        if old is not None and self.gating is not None:
            self.gating.carry_over(old)
        self._renew_gates(self.gating)

    def _renew_gates(self, gating: Gating | None) -> None:
        """Tell each strategy which of the gates now on the model the plan says are its own, by site."""
        for name, strategy in self.known.items():
            own = [r for r in self.plan.attached.values() if r.plugin == name and gating and r.key in gating.gates]
            strategy.gates = {r.site: cast("Gate", gating.gates[r.key]) for r in own} if gating else {}

    def least(self) -> float:
        """The least share of the dense model that can be reached now."""
        return (least_left(self._tree, self.gating, self._fewest) + self._gate_cost()) / self.dense_total


def _never(rates: dict[str, float]) -> list[str]:
    """The branches whose gate was never on."""
    return [name for name, rate in rates.items() if rate == 0.0]
