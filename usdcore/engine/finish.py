"""After the phases: save, evaluate in a new process, train the controls, measure latency, write the result and its
report.
"""

from __future__ import annotations

import json
import subprocess
import sys
from typing import TYPE_CHECKING, Any

from usdcore.artifact import save
from usdcore.engine.assess import Assessor
from usdcore.engine.beside import Beside
from usdcore.engine.evaluate import evaluation_loader
from usdcore.engine.outcome import make_result
from usdcore.errors import UsdcoreError
from usdcore.files import write_atomic
from usdcore.latency import Timing, measure_latency
from usdcore.plans import Plan
from usdcore.report.page import write_report

if TYPE_CHECKING:
    from usdcore.engine.phases import Run


class Finish:
    """What is left of a run when its phases are done. Each step's outcome is in the checkpoint before the next
    begins.
    """

    def __init__(self, run: Run) -> None:
        self.run = run
        self.recipe, self.folder, self.facts = run.recipe, run.folder, run.facts

    def execute(self) -> dict[str, Any]:
        """The result, after it was written."""
        phases, processes, beside = len(self.recipe.phases), self.run.processes, Beside(self.run)
        if self.run.stage == phases:
            self._note_dense()
            self.facts.update(processes.from_first(self._save_and_evaluate))
            self.run.advance(beside.begin(0))
        for number in range(len(self.recipe.controls)):
            if self.run.stage == phases + 1 + number:
                beside.train(number)
                self.run.advance(beside.begin(number + 1))
        result: dict[str, Any] = processes.from_first(self._result)
        return result

    def _result(self) -> dict[str, Any]:
        result = make_result(self.run, self._latency())
        write_atomic(self.folder.path / "result.json", (json.dumps(result, indent=1) + "\n").encode())
        write_report(self.folder.path)
        return result

    def _note_dense(self) -> None:
        """Of a run that compresses nothing, the dense model is the one that it ends with."""
        run = self.run
        if "dense" not in self.facts:
            run.keep_model(Plan(base=run.base), self.folder.dense)
            self.facts["dense"] = {"top1": run.top1(run.session), "epochs": sum(p.epochs for p in self.recipe.phases)}

    def _save_and_evaluate(self) -> dict[str, Any]:
        """What it adds to the facts."""
        run, session = self.run, self.run.session
        save(session.model, session.plan, self.folder.model)
        run.log.say(f"saved {self.folder.model}; evaluating it in a new process")
        self.facts["eval"] = self._in_new_process()
        here = Assessor(session, self.recipe, run.data, run.device)
        promised = here.at(self.recipe.budget.batch_size)
        there = next(row for row in self.facts["eval"] if row["batch_size"] == self.recipe.budget.batch_size)
        if abs(there["executed_macs"] - promised.execution.macs) > 1e-3 * session.dense.macs:
            msg = (
                f"the model reloaded in a new process executes {there['executed_macs']:.0f} MACs per image, "
                f"here it was {promised.execution.macs:.0f}; is the device deterministic?"
            )
            raise UsdcoreError(msg)
        self.facts["standard_error"] = promised.execution.standard_error
        self.facts["rates"] = promised.execution.rates
        threshold_plan = session.plan
        turned = [self._dial(here, target) for target in self.recipe.evaluate.dial]
        self.facts["dial"] = [row for row in turned if row is not None]
        session.plan = threshold_plan
        return {key: self.facts[key] for key in ("eval", "standard_error", "rates", "dial")}

    def _dial(self, here: Assessor, target: float) -> dict[str, Any] | None:
        try:
            return here.turn_to(target)
        except UsdcoreError as error:
            self.run.log.say(f"dial: {error}")
            return None

    def _in_new_process(self) -> list[dict[str, Any]]:
        command = [sys.executable, "-m", "usdcore", "eval", str(self.folder.path), "--json"]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode != 0:
            msg = f"the saved model could not be evaluated in a new process ({' '.join(command)}):\n{done.stderr}"
            raise RuntimeError(msg)
        rows: list[dict[str, Any]] = json.loads(done.stdout)["eval"]
        return rows

    def _latency(self) -> dict[str, list[dict[str, Any]]]:
        """Dense, compressed and controls side by side, on evaluation images."""
        files = {"dense": self.folder.dense, "compressed": self.folder.model}
        files |= {name: self.folder.control(name) for name in self.recipe.controls if name in self.facts}
        models = {name: self.folder.load(path, self.run.device) for name, path in files.items()}
        sizes, repeats, budget = self.recipe.latency.batch_sizes, self.recipe.latency.repeats, self.recipe.budget
        if budget.metric == "latency":  # what was promised is measured, and not in a hurry
            sizes, repeats = tuple(dict.fromkeys((*sizes, budget.batch_size))), max(repeats, 15)
        loader = evaluation_loader(self.run.data.test, max(sizes), self.recipe.seed, "shuffled", 0)
        images = next(iter(loader))[0].to(self.run.device)
        self.run.log.say("measuring latency")
        return measure_latency(
            models,
            self.run.base.input_shape,
            sizes,
            Timing(repeats, device=self.run.device),
            images,
        )
