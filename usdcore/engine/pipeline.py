"""`run`: a recipe from its first phase to its report. Stops and goes on: the same command finds where it was.

Started several times by a launcher, the first process writes and speaks; the others work along.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from usdcore.engine.dryrun import dry_run
from usdcore.engine.finish import Finish
from usdcore.engine.fit import Surroundings
from usdcore.engine.folder import RunFolder
from usdcore.engine.log import RunLog, SilentLog
from usdcore.engine.phases import Run
from usdcore.engine.preflight import locating, preflight, require_compilers
from usdcore.engine.processes import launched, started
from usdcore.engine.setup import autocast, load_data, pick_device, uses_cuda
from usdcore.engine.spread import require_spread
from usdcore.engine.stop import interruptible
from usdcore.errors import BudgetMissed
from usdcore.recipe import read_recipe
from usdcore.report.page import write_report

if TYPE_CHECKING:
    from collections.abc import Sequence

    from usdcore.engine.data import DataSets
    from usdcore.engine.processes import Processes
    from usdcore.recipe import LoadedRecipe, Recipe


def run(recipe_path: str | Path, out: str | Path | None = None, overrides: Sequence[str] = ()) -> dict[str, Any]:
    """Run a recipe into the folder `out` (default `runs/<name of the recipe>`); returns what `result.json` holds.

    A finished run is not run again. An interrupted one goes on from its last checkpoint. Errors: a folder that belongs
    to another recipe; `BudgetMissed` after everything was written, where the budget was not met. Under several
    processes all return the same, and each raises an error when one of them does.
    """
    loaded = read_recipe(recipe_path, overrides)
    folder = RunFolder(Path(out) if out is not None else Path("runs") / loaded.recipe.name, loaded.recipe)
    with started(uses_cuda(loaded.recipe)) as processes:
        processes.same_everywhere(folder.sha256, "the recipe")
        finished: dict[str, Any] | None = processes.from_first(lambda: _finished(folder))
        done = _run(loaded, folder, processes) if finished is None else finished
    if not done["budget"]["met"]:
        msg = f"the budget was missed: {done['budget']['why']}; see {folder.path / 'report.md'}"
        raise BudgetMissed(msg)
    return done


def _finished(folder: RunFolder) -> dict[str, Any] | None:
    """What a run that is over has written; None where there is something left to do."""
    done = folder.result()
    if done is not None and not (folder.path / "report.html").is_file():
        write_report(folder.path)  # the run ended between its result and its report
    if done is None:
        folder.check_owner()
    return done


def _run(loaded: LoadedRecipe, folder: RunFolder, processes: Processes) -> dict[str, Any]:
    recipe = loaded.recipe
    with locating(("data", "batch_size"), loaded.written):
        require_spread(recipe, recipe.data.batch_size, processes.world)
    if processes.from_first(lambda: folder.checkpoints.exist):
        preflight(recipe, loaded.written, fresh=False)
    else:
        dry_run(recipe, loaded.written)  # what would only show in the last phase must not wait for it
    device = pick_device(recipe, launched()[2], processes.world)
    require_compilers(recipe, device, loaded.written)
    log = (RunLog if processes.is_first else SilentLog)(folder.path / "metrics.jsonl")
    try:
        processes.from_first(folder.lock)
        with interruptible(is_one_of_several=processes.world > 1) as stop:
            with locating(("data",), loaded.written):
                data = _data(recipe, processes)
            with locating(("data", "batch_size"), loaded.written):
                require_spread(recipe, len(data.train), processes.world)  # type: ignore[arg-type]
            amp = autocast(device, recipe.train.amp)
            around = Surroundings(data, recipe.data, recipe.seed, device, log, amp, processes)
            found = Run(recipe, folder, around, stop)
            # Only now: a recipe whose data or model is wrong leaves no folder behind.
            processes.from_first(folder.claim)
            found.execute()
            return Finish(found).execute()
    finally:
        log.close()
        folder.release()


def _data(recipe: Recipe, processes: Processes) -> DataSets:
    """The recipe's data, the same in every process. What has to be fetched is fetched by the first one."""
    if getattr(recipe.data, "download", False):
        processes.from_first(lambda: load_data(recipe).fingerprint)
    data = load_data(recipe)
    processes.same_everywhere(data.fingerprint, "the data")
    return data
