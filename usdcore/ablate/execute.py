"""Run what has no result yet, run after run; several processes may work on one table."""

from __future__ import annotations

import os
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from usdcore.ablate.handing import hand_on
from usdcore.ablate.locks import locked
from usdcore.engine.pipeline import run
from usdcore.errors import BudgetMissed, UsdcoreError
from usdcore.files import write_atomic
from usdcore.recipe import dump_recipe
from usdcore.report.text import duration

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from usdcore.ablate.jobs import Job

PAUSE = 2.0
"""Seconds between two looks at what another process is doing."""


@dataclass
class Outcome:
    """What was done: runs finished here, runs that another process had, errors by run; `missed`: no result, because the
    search ended too far from its budget.
    """

    finished: list[Job] = field(default_factory=list)
    elsewhere: list[str] = field(default_factory=list)
    failed: dict[str, str] = field(default_factory=dict)
    missed: dict[str, str] = field(default_factory=dict)


def execute(jobs: Sequence[Job], say: Callable[[str], None]) -> Outcome:
    """Run all of `jobs` that have no result, each in its folder; what is broken off goes on.

    A run's mistake does not stop the others, but the same mistake twice does: it is then everybody's.

    Errors: a launcher started this as one of several processes of a run.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        msg = "an ablation is started once a process, not by a launcher; share it out with --shard 1/2, --shard 2/2"
        raise UsdcoreError(msg)
    return _Executor(jobs, say).execute()


class _Executor:
    def __init__(self, jobs: Sequence[Job], say: Callable[[str], None]) -> None:
        self.left = [job for job in jobs if job.state in ("begun", "not run")]
        self.total, self.done = len(self.left), 0
        self.say, self.outcome = say, Outcome()
        self.started = time.monotonic()
        self.waited: set[str] = set()
        self.mistakes: set[str] = set()

    def execute(self) -> Outcome:
        while self.left:
            before = len(self.left)
            for job in list(self.left):
                self._try(job)
            if len(self.left) == before:
                time.sleep(PAUSE)
        return self.outcome

    def _try(self, job: Job) -> None:
        """Run one and take it off the list, unless its dense model is still being trained elsewhere."""
        with locked(job.lock) as other:
            if other is not None:
                self.outcome.elsewhere.append(f"{job.name}, seed {job.seed}: {other}")
            elif job.state in ("begun", "not run"):
                if job.stem is not None and job.state == "not run" and not self._ready(job.stem):
                    return
                self._run(job)
        self.left.remove(job)

    def _ready(self, stem: Job) -> bool:
        """Whether a run's dense model is there, or can't be; trains it unless another process does."""
        if stem.key in self.outcome.failed or stem.state in ("done", "missed"):
            return True
        with locked(stem.lock) as other:
            if other is None:
                if stem.state in ("begun", "not run"):
                    self.say(f"dense model of seed {stem.seed}, for all rows that start from it")
                    self._attempt(stem)
                return True
            if stem.key not in self.waited:
                self.say(f"waiting for the dense model of seed {stem.seed}, which {other} trains")
                self.waited.add(stem.key)
            return False

    def _run(self, job: Job) -> None:
        self.say(f"[{self.done + 1}/{self.total}] {job.name}, seed {job.seed}{self._remaining()}")
        stem = job.stem
        if stem is not None and stem.key in self.outcome.failed:
            self.outcome.failed[job.key] = "the dense model that it starts from could not be trained"
            self.say(f"{job.name}, seed {job.seed}: {self.outcome.failed[job.key]}")
        else:
            self._attempt(job, stem if job.state == "not run" else None)
        self.done += 1

    def _attempt(self, job: Job, stem: Job | None = None) -> None:
        """Run one, from its dense model where that is given; a result says what came out, a missed budget too."""
        folder = job.folder
        recipe = folder / "recipe.yaml"
        # Also where one lies there: data may have moved, which changes no hash.
        write_atomic(recipe, dump_recipe(job.recipe).encode())
        try:
            if stem is not None:
                hand_on(stem.folder, folder, job.recipe)
            run(recipe, folder)
        except BudgetMissed as missed:
            self.say(f"{job.name}, seed {job.seed}: {missed}")
            if job.result() is None:  # the search itself was too far off to go on
                self.outcome.missed[job.key] = f"{job.name}, seed {job.seed}: {missed}"
                return
        except UsdcoreError as error:
            self._fail(job, str(error))
            return
        self.outcome.finished.append(job)

    def _fail(self, job: Job, text: str) -> None:
        self.say(f"{job.name}, seed {job.seed}: error: {text}")
        self.outcome.failed[job.key] = text
        general = text.replace(str(job.folder), "")
        if general in self.mistakes:
            msg = f"the same mistake in two runs, so the rest was not tried:\n{text}"
            raise UsdcoreError(msg)
        self.mistakes.add(general)

    def _remaining(self) -> str:
        if not self.done:
            return ""
        left = (time.monotonic() - self.started) / self.done * (self.total - self.done)
        return f" (about {duration(left)} left)"
