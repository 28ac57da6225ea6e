"""`run`: a recipe from its first phase to its report. Stops and goes on: the same command finds where it was."""

from __future__ import annotations

import os
import signal
import time
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from usdcore.engine.finish import Finish
from usdcore.engine.folder import RunFolder
from usdcore.engine.log import RunLog
from usdcore.engine.phases import Run
from usdcore.engine.setup import autocast, load_data, pick_device
from usdcore.errors import BudgetMissed
from usdcore.recipe import load_recipe

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence


def run(recipe_path: str | Path, out: str | Path | None = None, overrides: Sequence[str] = ()) -> dict[str, Any]:
    """Run a recipe into the folder `out` (default `runs/<name of the recipe>`); returns what `result.json` holds.

    A finished run is not run again. An interrupted one goes on from its last checkpoint. Errors: a folder that belongs
    to
    another recipe; `BudgetMissed` after everything was written, where the budget was not met.
    """
    recipe = load_recipe(recipe_path, overrides)
    folder = RunFolder(Path(out) if out is not None else Path("runs") / recipe.name, recipe)
    done = folder.result()
    if done is None:
        folder.check_owner()
        device = pick_device(recipe)
        log = RunLog(folder.path / "metrics.jsonl")
        try:
            with _interruptible() as stop:
                around = Run(recipe, folder, load_data(recipe), device, log, autocast(device, recipe.train.amp), stop)
                folder.claim()  # only now: a recipe whose data or model is wrong leaves no folder behind
                around.execute()
                done = Finish(around).execute()
        finally:
            log.close()
    if not done["budget"]["met"]:
        msg = f"the budget was missed: {done['budget']['why']}; see {folder.path / 'report.md'}"
        raise BudgetMissed(msg)
    return done


class Stop:
    """Set by SIGINT and SIGTERM; looked at after every step, so that a checkpoint is written before the run ends."""

    def __init__(self) -> None:
        self.requested = False

    def __call__(self, number: int, frame: object) -> None:
        """The signal's handler; a second signal ends the run at once."""
        if self.requested:
            os._exit(130)
        self.requested = True


@contextmanager
def _interruptible() -> Iterator[Stop]:
    stop = Stop()
    before = {}
    for number in (signal.SIGINT, signal.SIGTERM):
        try:
            before[number] = signal.signal(number, stop)
        except ValueError:  # not in the main thread: signals stay whose they are
            break
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


class Clock:
    """Says when the next checkpoint is due."""

    def __init__(self, interval_seconds: float) -> None:
        self.interval = interval_seconds
        self._last = time.monotonic()

    def due(self) -> bool:
        """True once per interval."""
        if time.monotonic() - self._last < self.interval:
            return False
        self._last = time.monotonic()
        return True
