"""The phases of a run: train, decide, shrink, and go on with the smaller model."""

from __future__ import annotations

import time
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any

import torch

from usdcore.artifact import create, save
from usdcore.costs import Cost, cost
from usdcore.engine.carry import Carried
from usdcore.engine.checkpoint import restoring
from usdcore.engine.data import sample_seed
from usdcore.engine.digest import digest
from usdcore.engine.evaluate import calibration_batches, evaluate, evaluation_loader, execute
from usdcore.engine.fit import Fit, Stage, Surroundings
from usdcore.engine.guard import BadNumbers
from usdcore.engine.keep import Epochs
from usdcore.engine.own import mine
from usdcore.engine.setup import Strategies, build_model, make_base, make_budget
from usdcore.engine.sizes import fast_sizes
from usdcore.engine.spread import batch_norm_warning, notes
from usdcore.engine.timed import TimedBudget, latency_ratios
from usdcore.errors import UsdcoreError
from usdcore.plans import Plan, parse_plan
from usdcore.session import PhaseEnd, Session
from usdcore.surgery import shrink
from usdcore.teachers import no_dense

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from pathlib import Path

    from torch import nn

    from usdcore.engine.folder import RunFolder
    from usdcore.engine.stop import Stop
    from usdcore.recipe import PhaseConfig, Recipe
    from usdcore.strategy import Budget


MOST_WARNINGS = 200
FORMAT = 1
"""Of what lies in a run's folder while it runs: state, metrics.jsonl, recipe.yaml. Another one is not gone on with."""


class Run:
    """A recipe being run. `facts` collects what the result will say; `stage` counts phases, then the controls."""

    def __init__(self, recipe: Recipe, folder: RunFolder, around: Surroundings, stop: Stop) -> None:
        self.recipe, self.folder, self.around, self.stop = recipe, folder, around, stop
        self.data, self.device, self.log, self.processes = around.data, around.device, around.log, around.processes
        self.base = make_base(recipe.model, recipe.data.input_size, self.data.in_chans)
        self.strategies = Strategies()
        self.facts: dict[str, Any] = {"phases": [], "warnings": []}
        self.stage = 0
        self.before = 0.0
        self.carried: Carried | None = None
        self.timed: TimedBudget | None = None
        self.waited: float | None = None
        self.keeper = Epochs(self)
        self._started = time.monotonic()
        self._saved: dict[str, Any] | None = None
        self.session = self._restore() if folder.checkpoints.exist else self._fresh()
        # Nobody writes a checkpoint before everybody has read the last one.
        self.processes.same_everywhere(f"{self.stage} {self._saved is None}", "the place that the run stands at")

    @property
    def seconds(self) -> float:
        """Time spent on this run, over all its starts."""
        return self.before + time.monotonic() - self._started

    def execute(self) -> None:
        """Run the phases that are left. Errors: processes that come to different plans or weights."""
        if self.stage < len(self.recipe.phases):
            self._note_processes()
        for index, phase in enumerate(self.recipe.phases):
            if index >= self.stage:
                self._phase(index, phase)

    def fit(self, stage: Stage, phase: PhaseConfig | None = None, *, carries: bool = False) -> Carried | None:
        """Train `session` through a stage (a phase, or a control), from where a checkpoint left it.

        Returns what the next phase's optimizer may go on with, if `carries`. Errors: a number that is not finite, after
        going back to a good state and half the learning rate did not help.
        """
        with self.stop.held():
            while True:
                fit = self._begin(stage, phase)
                try:
                    fit.run(self.keeper)
                    break
                except BadNumbers as bad:
                    self._go_back(fit, bad)
            # What follows can be made again from here.
            self.keeper.write(fit)
        carried, self.waited = fit.carry() if carries else None, fit.waited
        fit.finish()
        return carried

    def advance(self, session: Session) -> None:
        """A stage is done: the next one starts from here."""
        with self.stop.held():
            self.stage += 1
            self.session = session
            self.keeper.write_between()

    def state(self, fit: Fit | None) -> dict[str, Any]:
        """All that the rest of the run depends on. Without `fit` it stands between two stages."""
        return {
            "format": FORMAT,
            "recipe_sha256": self.folder.sha256,
            "stage": self.stage,
            "plan": self.session.plan.model_dump_json(),
            "dense": [self.session.dense.macs, self.session.dense.params],
            "facts": self.facts,
            "fit": fit.state_dict() if fit is not None else None,
            "model": self.session.model.state_dict() if fit is None else None,
            "carried": self.carried.state_dict() if self.carried is not None and fit is None else None,
            "strategies": {name: made.state_dict() for name, made in self.strategies.made.items()},
            "lines": self.log.lines,
            "seconds": self.seconds,
            "processes": self.processes.world,
        }

    def warn(self, text: str, site: str | None = None) -> None:
        """A line for people that the result repeats; only the first about a site."""
        known: list[dict[str, str | None]] = self.facts["warnings"]
        if site is None or all(one["site"] != site for one in known):
            self.log.say(f"warning: {text}")
            if len(known) < MOST_WARNINGS:
                known.append({"site": site, "text": text})

    def top1(self, session: Session) -> float:
        """Of the model as it stands, on the evaluation images at the budget's batch size."""
        size, seed, workers = self.recipe.budget.batch_size, self.recipe.seed, self.recipe.data.workers
        loader = evaluation_loader(self.data.test, size, seed, "shuffled", workers, self.processes)
        return evaluate(session.model, session.units, loader, self.around.amp, self.processes).top1

    def calibration(self) -> Any:
        """This process's batches of calibration images."""
        images, size = self.recipe.evaluate.calibration_images, self.recipe.budget.batch_size
        return calibration_batches(
            self.data.train_eval, size, self.recipe.seed, images, self.device, processes=self.processes
        )

    def train_config(self, phase: PhaseConfig) -> Any:
        """The recipe's training keys with the phase's on top."""
        return self.recipe.train_for(phase)

    def _phase(self, index: int, phase: PhaseConfig) -> None:
        started = time.monotonic()
        names = [config.use for config in phase.strategies]
        compresses = any(strategy.compresses for strategy in self.strategies.of(phase.strategies))
        if compresses and "dense" not in self.facts:
            self._note_dense(index)
        self.log.say(f"phase {phase.name}: {phase.epochs} epochs, {', '.join(names) or 'plain training'}")
        first = sum(p.epochs for p in self.recipe.phases[:index])
        stage, later = Stage(phase.name, phase.epochs, self.train_config(phase), first), self.recipe.phases[index + 1 :]
        carries = bool(later) and self.train_config(later[0]).optimizer_state == "carry"
        carried = self.fit(stage, phase, carries=carries)
        end = self.session.end_phase(self.calibration()) if names else None
        self.require_same(f"the outcome of phase {phase.name}")
        if self.timed is not None:
            self.facts["timed"] |= {"macs": self.session.budget.target, "tried": self.timed.tried}
        if end is not None:
            self._note_end(end)
        self.carried = carried.cut(self.session.slices) if carried is not None and end is not None else carried
        if index + 1 == len(self.recipe.phases):
            self._close()
        fact = {
            "name": phase.name,
            "epochs": phase.epochs,
            "seconds": round(time.monotonic() - started, 2),
            "waited": None if self.waited is None else round(self.waited, 4),
            "strategies": names,
            "macs_after": float(cost(self.session.units).macs) if names else None,
            "top1_after": self.top1(self.session),
        }
        self.facts["phases"].append(fact)
        self.log.write(event="phase", **fact)
        self.log.say(f"phase {phase.name} done: top-1 {fact['top1_after']:.2f} %")
        self.advance(self.session)

    def _begin(self, stage: Stage, phase: PhaseConfig | None) -> Fit:
        """A stage as it starts, or as a saved state left it."""
        self._seed(self.stage)
        strategies = self.strategies.of(phase.strategies) if phase is not None else []
        self.session.begin_phase(strategies)
        carried, self.carried = self.carried, None
        fit = Fit(self.session, stage, self.around, strategies, carried)
        if self._saved is not None:
            with restoring(self.folder.checkpoints.last):
                fit.load_state_dict(self._saved["fit"])
            self.keeper.restored(fit, self._saved)
            self._saved = None
        self.require_same(f"the model at the start of {stage.name}")
        return fit

    def _go_back(self, fit: Fit, bad: BadNumbers) -> None:
        """Put the last good state in place, with half the learning rate; the run itself, its log and facts stay.

        Errors: there was a way back before.
        """
        state = self.keeper.good
        if state is None:
            msg = (
                f"{bad}; it did so at half the learning rate too. Lower train.lr (or the lr of the strategy that it "
                "names) or clip gradients (train.clip_grad), and start again in another folder"
            )
            raise UsdcoreError(msg) from None
        epoch = fit.state.epoch + 1
        self.warn(f"{bad}; going back to the start of epoch {epoch}, on with half the learning rate")
        self._saved = {**state, "fit": {**state["fit"], "lr_scale": 0.5}}
        self.session = self._rebuild(state, self.folder.checkpoints.last)

    def _note_dense(self, index: int) -> None:
        """`dense` is the model as it enters the first phase that compresses."""
        self.keep_model(Plan(base=self.base), self.folder.dense)
        self.facts["dense"] = {
            "top1": self.top1(self.session),
            "epochs": sum(phase.epochs for phase in self.recipe.phases[:index]),
        }

    def keep_model(self, plan: Plan, path: Path) -> None:
        """Save the model as it stands."""

        def write() -> None:
            save(self.session.model, plan, path)

        self.processes.from_first(write)

    def require_same(self, what: str) -> None:
        """Errors: the processes do not have the same plan, weights and strategies."""
        if self.processes.is_alone:
            return
        strategies = {
            name: {key: value for key, value in made.state_dict().items() if key not in made.own}
            for name, made in self.strategies.made.items()
        }
        state = [self.session.plan.model_dump_json(), self.session.model.state_dict(), strategies]
        self.processes.same_everywhere(digest(state), what)

    def _note_processes(self) -> None:
        """Say what several processes change."""
        size = min(self.recipe.data.batch_size, len(self.data.train))  # type: ignore[arg-type]
        for line in notes(self.recipe, self.processes, size):
            self.log.say(line)
        warning = batch_norm_warning(self.session.model, self.processes, size)
        if warning is not None:
            self.warn(warning, "BatchNorm")

    def _note_end(self, end: PhaseEnd) -> None:
        for note in end.notes:
            self.warn(note)
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

    def _fresh(self) -> Session:
        self.log.rewind(0)
        self.keeper.sweep()
        self._seed(-1)
        model = build_model(self.base, self.recipe.model)
        return self._session(model, Plan(base=self.base), None)

    def _seed(self, stage: int) -> None:
        """What is made before a stage (weights, gates) depends on the recipe's seed and the stage alone."""
        torch.manual_seed(sample_seed(self.recipe.seed, stage, -1))

    def _restore(self) -> Session:
        state, path, wrong = self.folder.checkpoints.read()
        if wrong:
            self.log.say(f"{wrong}. Going on from the checkpoint before it")
        with restoring(path):
            if state["recipe_sha256"] != self.folder.sha256:
                msg = f"{path}: belongs to another recipe; choose another folder with --out"
                raise UsdcoreError(msg)
            if state["format"] != FORMAT:
                msg = (
                    f"{path}: of a run in format {state['format']!r}, and this usdcore goes on with format {FORMAT}; "
                    f"use the version that wrote it, or remove {path.parent} to start the run over"
                )
                raise UsdcoreError(msg)
            self.stage, self.facts, self.before = state["stage"], state["facts"], state["seconds"]
            self._saved = state if state["fit"] is not None else None
            self.carried = Carried.of_state(state["carried"]) if state["carried"] is not None else None
            session = self._rebuild(mine(state, self.processes), path)
            self.log.rewind(state["lines"])
        self.log.say(f"going on from {path}")
        was, now = state.get("processes", 1), self.processes.world
        if was != now:
            self.warn(
                f"the run was broken off with {was} process{'es' * (was > 1)} and goes on with {now}: each step is the "
                "same but for rounding and for what processes draw by themselves, not to the bit"
            )
        return session

    def _rebuild(self, state: dict[str, Any], path: Path) -> Session:
        """The session of a saved state, with strategies made anew."""
        self.strategies = Strategies()
        for phase in self.recipe.phases[: self.stage + 1]:
            self.strategies.of(phase.strategies)
        for name, saved in state["strategies"].items():
            if name in self.strategies.made:
                self.strategies.made[name].load_state_dict(saved)
        plan = parse_plan(state["plan"], str(path))
        model = shrink(create(self.base), plan)
        if state["model"] is not None:
            model.load_state_dict(state["model"])
        is_control = self.stage > len(self.recipe.phases)
        return (self.control_session if is_control else self._session)(model, plan, Cost(*state["dense"]))

    def control_session(self, model: nn.Module, plan: Plan, dense: Cost) -> Session:
        """A session like the run's own, for a control: of that one nothing is asked."""
        session = self._session(model, plan, dense)
        session.budget = replace(session.budget, target=1.0)
        return session

    def _session(self, model: nn.Module, plan: Plan, dense: Cost | None) -> Session:
        example = torch.zeros(1, *self.base.input_shape)
        session = Session(model.to(self.device), example, self._rounded(make_budget(self.recipe.budget)), plan, dense)
        session.amp, session.mean = self.around.amp, self.processes.mean
        session.execute = partial(execute, processes=self.processes)
        session.known = self.strategies.made
        file, device = self.folder.dense, self.device
        session.load_dense = lambda: self.folder.load(file, device) if "dense" in self.facts else no_dense()
        if self.recipe.budget.metric == "latency":
            self._follow_time(session)
        return session

    def _rounded(self, budget: Budget) -> Budget:
        """With the sizes that the device is fast at, where it is to be asked: as measured when the run began."""
        if not self.recipe.budget.is_rounded_by_device:
            return budget
        if "sizes" not in self.facts:
            self.log.say("measuring which sizes this device is fast at")
            measured = partial(fast_sizes, self._like_dense(), self.base.input_shape, budget.batch_size, self.device)
            self.facts["sizes"] = self.processes.from_first(partial(measured, self._ratios))
            self.log.say("sizes in steps of {step}".format(**self.facts["sizes"]))
        return replace(budget, round_to=self.facts["sizes"]["step"])

    def _like_dense(self) -> nn.Module:
        """The dense model with other weights, on which its time does not depend."""
        with torch.random.fork_rng(devices=[]):
            return create(self.base).eval()

    @property
    def _ratios(self) -> Callable[[Mapping[str, nn.Module], int], Mapping[str, float]]:
        """Times models on this run's device, over the first of them."""
        return partial(latency_ratios, shape=self.base.input_shape, device=self.device)

    def _follow_time(self, session: Session) -> None:
        """A budget of time: its share of MACs, as measured when the run began or when the last phase ended."""
        budget, shape, device = self.recipe.budget, self.base.input_shape, self.device
        if self.timed is None:
            dense, first = self._like_dense(), self.processes.from_first
            self.timed = TimedBudget(dense, shape, budget.target, budget.batch_size, self._ratios, first)
        if "timed" not in self.facts:
            self.log.say(f"measuring times at batch size {budget.batch_size}, for a budget of latency")
            self.facts["timed"] = self.timed.begin(device)
            self.log.say("{macs:.4f} of the dense MACs".format(**self.facts["timed"]))
        session.settle_time = self.timed.settle
        session.budget = replace(session.budget, target=self.facts["timed"]["macs"])
