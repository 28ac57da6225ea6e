"""`usdcore eval`: a finished run's model on its evaluation images, at its own budget or another."""

from __future__ import annotations

import json
from pathlib import Path

import click


@click.command()
@click.argument("run", type=click.Path(path_type=Path))
@click.option("--budget", type=float, help="Turn the gates' threshold to execute this share of the dense MACs.")
@click.option("--batch-size", "batch_sizes", type=click.IntRange(min=1), multiple=True, help="Instead of the recipe's.")
@click.option(
    "--scope", type=click.Choice(["batch", "sample"]), help="Decide per batch or per sample; default the recipe's."
)
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def command(run: Path, budget: float | None, batch_sizes: tuple[int, ...], scope: str | None, as_json: bool) -> None:
    """Load RUN/model.safetensors and evaluate it with the data of RUN/recipe.yaml."""
    from usdcore.engine.assess import Assessor
    from usdcore.engine.setup import load_data, pick_device
    from usdcore.errors import UsdcoreError
    from usdcore.recipe import load_recipe
    from usdcore.report.terminal import print_evaluation

    for needed in ("recipe.yaml", "model.safetensors"):
        if not (run / needed).is_file():
            msg = f"{run}: holds no {needed}, so no run came so far there; see usdcore run"
            raise UsdcoreError(msg)
    if budget is not None and not 0 < budget <= 1:
        msg = f"--budget {budget:g}: a share of the dense MACs, above 0 and at most 1"
        raise UsdcoreError(msg)
    recipe = load_recipe(run / "recipe.yaml")
    device = pick_device(recipe)
    assessor = Assessor.of_file(run / "model.safetensors", recipe, load_data(recipe), device)
    found: dict[str, object] = {"dense_macs": assessor.session.dense.macs}
    if budget is not None:
        found["dial"] = assessor.turn_to(budget)
    if batch_sizes or scope:
        found["eval"] = [assessor.row(size, scope) for size in batch_sizes or recipe.evaluate.batch_sizes]
    elif budget is None:
        found["eval"] = assessor.rows()
    if as_json:
        click.echo(json.dumps(found, indent=1))
    else:
        print_evaluation(found)
