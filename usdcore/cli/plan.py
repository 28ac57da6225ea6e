"""`usdcore plan`: a dry run. What is in the model, whether the budget can be reached, what the phases will take; no
data is read.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import click

from usdcore.cli.output import print_json

_MOST = 10**12


class Images(click.ParamType):  # type: ignore[type-arg]  # generic in newer releases of click only
    """One or two whole numbers from 1 up."""

    name = "TRAIN[,EVALUATION]"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[int, ...]:
        """The numbers. Errors: a usage error for anything else."""
        if isinstance(value, tuple):
            return value
        parts = str(value).split(",")
        if len(parts) > 2 or not all(part.strip().isdecimal() and 0 < int(part) <= _MOST for part in parts):
            self.fail(f"{value!r} is not one or two numbers of images, such as 1281167,50000", param, ctx)
        return tuple(int(part) for part in parts)


def _seconds(ctx: click.Context, param: click.Parameter, value: float) -> float:
    if math.isnan(value):  # which is in every range
        msg = "nan is not a number of seconds"
        raise click.BadParameter(msg, ctx, param)
    return value


@click.command()
@click.argument("recipe", type=click.Path(path_type=Path))
@click.option("--set", "overrides", multiple=True, metavar="KEY=VALUE", help="Override a value.")
@click.option("--images", type=Images(), default=(), help="How many there are, where the data are not here.")
@click.option(
    "--probe", "seconds", type=click.FloatRange(0, 86_400), default=40.0, show_default=True, metavar="SECONDS",
    callback=_seconds,
    help="Take real steps for about so long, for an estimate of time; 0: none.",
)  # fmt: skip
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def command(recipe: Path, overrides: tuple[str, ...], images: tuple[int, ...], seconds: float, as_json: bool) -> None:
    """Show what RECIPE would do (units, budget, phases, the least cost that its strategies can reach) and what that
    takes: steps, MACs, memory, and an estimate of its time on this device from a short probe.
    """
    from usdcore.cli.plan_words import words
    from usdcore.engine.forecast import forecast
    from usdcore.engine.probe import Probe
    from usdcore.recipe import read_recipe

    loaded = read_recipe(recipe, overrides)
    found = forecast(loaded.recipe, loaded.written, images, Probe(seconds) if seconds > 0 else None)
    if as_json:
        print_json(found)
    else:
        click.echo(words(found))
