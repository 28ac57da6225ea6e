"""`run`: a recipe from its first phase to its report. Stops and goes on: the same command finds where it was."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from usdcore.engine.dryrun import dry_run
from usdcore.engine.finish import Finish
from usdcore.engine.folder import RunFolder
from usdcore.engine.log import RunLog
from usdcore.engine.phases import Run
from usdcore.engine.preflight import locating, preflight
from usdcore.engine.setup import autocast, load_data, pick_device
from usdcore.engine.stop import interruptible
from usdcore.errors import BudgetMissed
from usdcore.recipe import read_recipe
from usdcore.report.page import write_report

if TYPE_CHECKING:
    from collections.abc import Sequence


def run(recipe_path: str | Path, out: str | Path | None = None, overrides: Sequence[str] = ()) -> dict[str, Any]:
    """Run a recipe into the folder `out` (default `runs/<name of the recipe>`); returns what `result.json` holds.

    A finished run is not run again. An interrupted one goes on from its last checkpoint. Errors: a folder that belongs
    to another recipe; `BudgetMissed` after everything was written, where the budget was not met.
    """
    loaded = read_recipe(recipe_path, overrides)
    recipe = loaded.recipe
    folder = RunFolder(Path(out) if out is not None else Path("runs") / recipe.name, recipe)
    done = folder.result()
    if done is not None and not (folder.path / "report.html").is_file():
        write_report(folder.path)  # the run ended between its result and its report
    if done is None:
        folder.check_owner()
        if folder.checkpoints.exist:
            preflight(recipe, loaded.written, fresh=False)
        else:
            dry_run(recipe, loaded.written)  # what would only show in the last phase must not wait for it
        device = pick_device(recipe)
        log = RunLog(folder.path / "metrics.jsonl")
        try:
            folder.lock()
            with interruptible() as stop:
                with locating(("data",), loaded.written):
                    data = load_data(recipe)
                around = Run(recipe, folder, data, device, log, autocast(device, recipe.train.amp), stop)
                folder.claim()  # only now: a recipe whose data or model is wrong leaves no folder behind
                around.execute()
                done = Finish(around).execute()
        finally:
            log.close()
            folder.release()
    if not done["budget"]["met"]:
        msg = f"the budget was missed: {done['budget']['why']}; see {folder.path / 'report.md'}"
        raise BudgetMissed(msg)
    return done
