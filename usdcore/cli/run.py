"""`usdcore run`: compress a model as a recipe says."""

from __future__ import annotations

import shlex
from pathlib import Path

import click


@click.command()
@click.argument("recipe", type=click.Path(path_type=Path))
@click.option(
    "--set", "overrides", multiple=True, metavar="KEY=VALUE", help="Override a value, as in --set budget.macs=0.6."
)
@click.option("--out", type=click.Path(path_type=Path), help="The run's folder; default runs/<name of the recipe>.")
def command(recipe: Path, overrides: tuple[str, ...], out: Path | None) -> None:
    """Run RECIPE. The same command goes on with an interrupted run; a finished one just prints its table."""
    from usdcore.engine.pipeline import run
    from usdcore.errors import BudgetMissed
    from usdcore.recipe import load_recipe
    from usdcore.report.terminal import print_result

    folder = out if out is not None else Path("runs") / load_recipe(recipe, overrides).name
    try:
        run(recipe, folder, overrides)
    except BudgetMissed:
        print_result(folder)
        raise
    except KeyboardInterrupt:
        saved = f"a checkpoint is in {folder}" if (folder / "checkpoints").is_dir() else "nothing was done yet"
        sets = [part for override in overrides for part in ("--set", override)]
        again = shlex.join(["usdcore", "run", str(recipe), *sets, *(["--out", str(out)] if out is not None else [])])
        click.echo(f"interrupted; {saved}. To go on: the same command again\n  {again}", err=True)
        raise
    print_result(folder)
