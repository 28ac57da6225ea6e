"""The controls of a run, trained one after the other when its phases are done, each a stage of its own."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from usdcore.artifact import create
from usdcore.costs import cost
from usdcore.engine import random_control
from usdcore.engine.controls import NARROW, narrow_plan
from usdcore.engine.evaluate import evaluate, evaluation_loader
from usdcore.engine.fit import Stage
from usdcore.gates import Gating
from usdcore.plans import Plan
from usdcore.runner import attach, detach
from usdcore.surgery import shrink
from usdcore.units import find_units

if TYPE_CHECKING:
    from usdcore.engine.evaluate import Evaluation
    from usdcore.engine.phases import Run
    from usdcore.session import Session


class Beside:
    """The models that the compressed one is compared with. What is known of one is in the run's facts by its name."""

    def __init__(self, run: Run) -> None:
        self.run, self.recipe, self.folder, self.facts = run, run.recipe, run.folder, run.facts

    def begin(self, number: int) -> Session:
        """The session that the control of this number starts with; the run's own where there is none to train."""
        if number >= len(self.recipe.controls):
            return self.run.session
        if self.recipe.controls[number] == "narrow":
            return self._narrow()
        return self._random() or self.run.session

    def train(self, number: int) -> None:
        """The control of this number, with what `begin` gave as the run's session."""
        if self.recipe.controls[number] == "narrow":
            self._train_narrow()
        elif "random_rates" in self.facts:
            self._train_random()

    def _narrow(self) -> Session:
        """The narrow model, fresh; its plan is uniform."""
        run = self.run
        row = next(row for row in self.facts["eval"] if row["batch_size"] == self.recipe.budget.batch_size)
        torch.manual_seed(self.recipe.seed)
        dense = create(run.base)
        units = find_units(dense, torch.zeros(1, *run.base.input_shape, device="meta"))
        plan = Plan(base=run.base).then(narrow_plan(units, row["executed_macs"]).records)
        return run.control_session(shrink(dense, plan), plan, run.session.dense)

    def _train_narrow(self) -> None:
        run, epochs = self.run, sum(phase.epochs for phase in self.recipe.phases)
        run.log.say(f"control: the narrow dense model, {epochs} epochs")
        run.fit(Stage("control narrow", epochs, run.train_config(self.recipe.phases[0]), epochs))
        found = {"top1": run.top1(run.session), "epochs": epochs}
        self._keep("narrow", NARROW, found)

    def _random(self) -> Session | None:
        """The compressed model without the gates that random ones stand in for. None, with a warning, where they
        can't.
        """
        run = self.run
        model, plan = self.folder.load_with_plan(self.folder.model, run.device)
        gating = detach(model) or Gating()
        units = find_units(model, torch.zeros(1, *run.base.input_shape, device="meta"))
        why = random_control.left_out(gating, units, self.facts["rates"])
        if why:
            run.warn(f"the control random is left out: {why}", "control random")
            return None
        gone, stay = random_control.replaced(gating, units), Gating()
        for key, gate in gating.gates.items():
            if key not in gone:
                stay.add(key, gate)  # type: ignore[arg-type]
        if len(stay.gates):
            attach(model, units, stay)
        self.facts["random_rates"] = random_control.site_rates(gating, units, self.facts["rates"])
        plan = random_control.without(plan, gone).model_copy(update={"base": run.base})
        return run.control_session(model, plan, run.session.dense)

    def _train_random(self) -> None:
        run = self.run
        how = random_control.training(self.recipe, self.facts["random_rates"])
        whole = sum(phase.epochs for phase in self.recipe.phases)
        run.log.say(f"control: random gates at the rates of our own, {how.epochs} epochs")
        # After the epochs of the other control, so that no two of a run see the same augmentation.
        run.fit(Stage("control random", how.epochs, run.train_config(how.phase), 2 * whole), how.phase)
        session, made = run.session, run.strategies.made[random_control.STRATEGY]
        session.plan = session.plan.then(made.records(set(), {}, settle=False))
        found = self._evaluated(session)
        what = {
            "top1": sum(one.top1 for one in found) / len(found),
            "epochs": whole + how.epochs,
            "executed_macs": sum(one.execution.macs for one in found) / len(found),
        }
        self._keep("random", random_control.describe(self.recipe, how.epochs), what)

    def _evaluated(self, session: Session) -> list[Evaluation]:
        """At the budget's batch size, in several orders of the images."""
        run, budget = self.run, self.recipe.budget
        found = []
        for turn in range(random_control.shuffles(budget.scope)):
            seed, workers = self.recipe.seed + turn, self.recipe.data.workers
            loader = evaluation_loader(run.data.test, budget.batch_size, seed, "shuffled", workers, run.processes)
            found.append(evaluate(session.model, session.units, loader, run.around.amp, run.processes))
        return found

    def _keep(self, name: str, description: str, found: dict[str, Any]) -> None:
        """Save the control, and note what is known of it."""
        run, session = self.run, self.run.session
        run.keep_model(session.plan, self.folder.control(name))
        size = cost(session.units)
        gate_params = sum(p.numel() for p in session.gating.parameters()) if session.gating is not None else 0
        gate_macs = session.gating.count_macs() if session.gating is not None else 0
        self.facts[name] = {
            "name": name,
            "description": description,
            "params": size.params + gate_params,
            "macs": size.macs + gate_macs,
            **found,
        }
