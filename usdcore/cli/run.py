"""`usdcore run`: compress a model as a recipe says. A launcher may start it several times: see docs/processes.md."""

from __future__ import annotations

import os
import shlex
import time
from pathlib import Path

import click

from usdcore.cli import GOOD, INTERRUPTED, MISTAKE
from usdcore.errors import BudgetMissed, UsdcoreError

#: Seconds for the first process to say what is the matter: launchers end all when one has failed.
SPEAKING = 1.0


@click.command()
@click.argument("recipe", type=click.Path(path_type=Path))
@click.option(
    "--set", "overrides", multiple=True, metavar="KEY=VALUE", help="Override a value, as in --set budget.macs=0.6."
)
@click.option("--out", type=click.Path(path_type=Path), help="The run's folder; default runs/<name of the recipe>.")
def command(recipe: Path, overrides: tuple[str, ...], out: Path | None) -> int:
    """Run RECIPE. The same command goes on with an interrupted run; a finished one just prints its table.

    Several processes share every batch: torchrun --nproc_per_node N -m usdcore run RECIPE
    """
    if os.environ.get("RANK", "0") != "0":
        return _quietly(recipe, overrides, out)
    from usdcore.engine.pipeline import run
    from usdcore.recipe import load_recipe
    from usdcore.report.terminal import print_result

    folder = out if out is not None else Path("runs") / load_recipe(recipe, overrides).name
    try:
        run(recipe, folder, overrides)
    except BudgetMissed:
        if (folder / "result.json").is_file():  # a search that fails its own promise ends the run before there is one
            print_result(folder)
        raise
    except KeyboardInterrupt:
        saved = f"a checkpoint is in {folder}" if (folder / "checkpoints").is_dir() else "nothing was done yet"
        sets = [part for override in overrides for part in ("--set", override)]
        again = shlex.join(["usdcore", "run", str(recipe), *sets, *(["--out", str(out)] if out is not None else [])])
        if int(os.environ.get("WORLD_SIZE", "1")) > 1:
            again = f"(launched as before) {again}"
        click.echo(f"interrupted; {saved}. To go on: the same command again\n  {again}", err=True)
        raise
    print_result(folder)
    return GOOD


def _quietly(recipe: Path, overrides: tuple[str, ...], out: Path | None) -> int:
    """Work along with the first process, which speaks, also of what went wrong here. Returns the exit code, which for
    a run that came to its end is the first process's matter; a bug shows itself.
    """
    from usdcore.engine.pipeline import run

    code = GOOD
    try:
        run(recipe, out, overrides)
    except BudgetMissed:
        return GOOD
    except UsdcoreError as error:
        # On a machine of its own it may lack what the first one has; and somebody must say that the first one is gone.
        if os.environ.get("LOCAL_RANK") == "0" or getattr(error, "is_mine_to_say", False):
            click.echo(f"process {os.environ['RANK']}: error: {error}", err=True)
        code = MISTAKE
    except KeyboardInterrupt:
        code = INTERRUPTED
    if code:
        time.sleep(SPEAKING)
    return code
