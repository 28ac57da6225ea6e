"""The phases of a run: train, decide, shrink, and go on with the smaller model."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

import torch

from usdcore.artifact import create, load, save
from usdcore.costs import Cost, cost
from usdcore.engine.checkpoint import read_state, write_state
from usdcore.engine.data import sample_seed
from usdcore.engine.evaluate import calibration_batches, evaluate, evaluation_loader
from usdcore.engine.fit import Fit, Stage, Surroundings
from usdcore.engine.setup import Strategies, build_model, make_base, make_budget
from usdcore.errors import UsdcoreError
from usdcore.plans import Plan, parse_plan
from usdcore.session import PhaseEnd, Session
from usdcore.surgery import shrink

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import nn

    from usdcore.engine.data import DataSets
    from usdcore.engine.folder import RunFolder
    from usdcore.engine.log import RunLog
    from usdcore.engine.stop import Stop
    from usdcore.recipe import PhaseConfig, Recipe

CHECKPOINT_SECONDS = 120.0


class Run:
    """A recipe being run. `facts` collects what the result will say; `stage` counts phases, then the controls."""

    def __init__(
        self,
        recipe: Recipe,
        folder: RunFolder,
        data: DataSets,
        device: torch.device,
        log: RunLog,
        amp: Callable[[], Any],
        stop: Stop,
    ) -> None:
        self.recipe, self.folder, self.data, self.device, self.log, self.stop = recipe, folder, data, device, log, stop
        self.around = Surroundings(data, recipe.data, recipe.seed, device, log, amp)
        self.base = make_base(recipe.model, recipe.data.input_size, data.in_chans)
        self.strategies = Strategies()
        self.facts: dict[str, Any] = {"phases": []}
        self.stage = 0
        self.before = 0.0
        self._started = time.monotonic()
        self._written = time.monotonic()
        self._saved: dict[str, Any] | None = None
        self.session = self._restore() if folder.checkpoint.is_file() else self._fresh()

    @property
    def seconds(self) -> float:
        """Time spent on this run, over all its starts."""
        return self.before + time.monotonic() - self._started

    def execute(self) -> None:
        """Run the phases that are left."""
        for index, phase in enumerate(self.recipe.phases):
            strategies = self.strategies.of(phase.strategies)
            if index >= self.stage:
                self._phase(index, phase, strategies)

    def fit(self, session: Session, stage: Stage, strategies: list[Any]) -> None:
        """Train a stage, from where a checkpoint left it."""
        fit = Fit(session, stage, self.around, strategies)
        if self._saved is not None:
            fit.load_state_dict(self._saved)
            self._saved = None
        fit.run(lambda: self._maybe_write(fit))

    def advance(self, session: Session) -> None:
        """A stage is done: the next one starts from here."""
        self.stage += 1
        self.session = session
        self.write(None)

    def write(self, fit: Fit | None) -> None:
        """Write the checkpoint. Without `fit` it stands between two stages."""
        state = {
            "recipe_sha256": self.folder.sha256,
            "stage": self.stage,
            "plan": self.session.plan.model_dump_json(),
            "dense": [self.session.dense.macs, self.session.dense.params],
            "facts": self.facts,
            "fit": fit.state_dict() if fit is not None else None,
            "model": self.session.model.state_dict() if fit is None else None,
            "strategies": {name: made.state_dict() for name, made in self.strategies.made.items()},
            "lines": self.log.lines,
            "seconds": self.seconds,
        }
        write_state(state, self.folder.checkpoint)
        self._written = time.monotonic()

    def top1(self, session: Session) -> float:
        """Of the model as it stands, on the evaluation images at the budget's batch size."""
        size, seed, workers = self.recipe.budget.batch_size, self.recipe.seed, self.recipe.data.workers
        loader = evaluation_loader(self.data.test, size, seed, "shuffled", workers)
        return evaluate(session.model, session.units, loader, self.around.amp).top1

    def calibration(self) -> Any:
        """Batches of calibration images."""
        images, size = self.recipe.evaluate.calibration_images, self.recipe.budget.batch_size
        return calibration_batches(self.data.train_eval, size, self.recipe.seed, images, self.device)

    def train_config(self, phase: PhaseConfig) -> Any:
        """The recipe's training keys with the phase's on top."""
        return self.recipe.train_for(phase)

    def _phase(self, index: int, phase: PhaseConfig, strategies: list[Any]) -> None:
        started = time.monotonic()
        if strategies and "dense" not in self.facts:
            self._note_dense(index)
        self._seed(index)
        self.session.begin_phase(strategies)
        first = sum(p.epochs for p in self.recipe.phases[:index])
        stage = Stage(phase.name, phase.epochs, self.train_config(phase), first)
        names = ", ".join(strategy.config.use for strategy in strategies) or "plain training"
        self.log.say(f"phase {phase.name}: {phase.epochs} epochs, {names}")
        self.fit(self.session, stage, strategies)
        end = self.session.end_phase(self.calibration()) if strategies else None
        if end is not None:
            self._note_end(end)
        if index + 1 == len(self.recipe.phases):
            self._close()
        fact = {
            "name": phase.name,
            "epochs": phase.epochs,
            "seconds": round(time.monotonic() - started, 2),
            "strategies": [strategy.config.use for strategy in strategies],
            "macs_after": float(cost(self.session.units).macs) if strategies else None,
            "top1_after": self.top1(self.session),
        }
        self.facts["phases"].append(fact)
        self.log.write(event="phase", **fact)
        self.log.say(f"phase {phase.name} done: top-1 {fact['top1_after']:.2f} %")
        self.advance(self.session)

    def _note_dense(self, index: int) -> None:
        """`dense` is the model as it enters the first phase that gates anything."""
        save(self.session.model, Plan(base=self.base), self.folder.dense)
        self.facts["dense"] = {
            "top1": self.top1(self.session),
            "epochs": sum(phase.epochs for phase in self.recipe.phases[:index]),
        }

    def _note_end(self, end: PhaseEnd) -> None:
        if end.searched is not None and "searched" not in self.facts:
            self.facts["searched"] = end.searched
            self.log.say(f"the search came to {end.searched:.4f} of the dense model by itself")
            self.facts["top1_before_finetune"] = self.top1(self.session)

    def _close(self) -> None:
        """The last phase is over: turn the threshold to the budget, and build in what never changes."""
        found = self.session.calibrate(self.calibration())
        if found is not None:
            self.log.say(
                f"threshold {found.threshold:.4f}: {found.execution.macs / self.session.dense.macs:.4f} executed"
            )
        gates = len(self.session.plan.attached)
        self.session.settle(self.calibration())
        left = len(self.session.plan.attached)
        if left < gates:
            self.log.say(f"{gates - left} of {gates} gates never change on the calibration images and went")
        if found is not None:  # measured anew: a gate network that went costs nothing any more
            executed = self.session.execution(self.calibration()).macs
            self.facts["calibrated"] = executed / self.session.dense.macs

    def _maybe_write(self, fit: Fit) -> None:
        if self.stop.requested:
            self.write(fit)
            raise KeyboardInterrupt
        if time.monotonic() - self._written > CHECKPOINT_SECONDS:
            self.write(fit)

    def _fresh(self) -> Session:
        self.log.rewind(0)
        self._seed(-1)
        model = build_model(self.base, self.recipe.model)
        return self._session(model, Plan(base=self.base), None)

    def _seed(self, stage: int) -> None:
        """What is made before a stage (weights, gates) depends on the recipe's seed and the stage alone."""
        torch.manual_seed(sample_seed(self.recipe.seed, stage, -1))

    def _restore(self) -> Session:
        state = read_state(self.folder.checkpoint)
        if state["recipe_sha256"] != self.folder.sha256:
            msg = f"{self.folder.checkpoint}: belongs to another recipe; choose another folder with --out"
            raise UsdcoreError(msg)
        self.stage, self.facts, self.before, self._saved = (
            state["stage"],
            state["facts"],
            state["seconds"],
            state["fit"],
        )
        self.log.rewind(state["lines"])
        for phase in self.recipe.phases[: self.stage + 1]:
            self.strategies.of(phase.strategies)
        for name, saved in state["strategies"].items():
            if name in self.strategies.made:
                self.strategies.made[name].load_state_dict(saved)
        plan = parse_plan(state["plan"], str(self.folder.checkpoint))
        model = shrink(create(self.base), plan)
        if state["model"] is not None:
            model.load_state_dict(state["model"])
        self.log.say(f"going on from {self.folder.checkpoint}")
        return self._session(model, plan, Cost(*state["dense"]))

    def _session(self, model: nn.Module, plan: Plan, dense: Cost | None) -> Session:
        example = torch.zeros(1, *self.base.input_shape)
        session = Session(model.to(self.device), example, make_budget(self.recipe.budget), plan, dense)
        session.amp = self.around.amp
        session.known = self.strategies.made
        session.load_dense = lambda: load(self.folder.dense, self.device)
        return session
