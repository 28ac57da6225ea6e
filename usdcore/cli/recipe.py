"""`usdcore recipe`: validate a recipe, show it resolved, print the schema. Imports no torch."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from usdcore.cli.output import print_json

if TYPE_CHECKING:
    from usdcore.recipe import Recipe

_SET = click.option("--set", "overrides", multiple=True, metavar="A.B=VALUE", help="Replace a value; may be repeated.")


@click.group("recipe")
def command() -> None:
    """Validate or show a recipe, or print its schema."""


@command.command("validate")
@click.argument("recipe")
@_SET
def validate(recipe: str, overrides: tuple[str, ...]) -> None:
    """Check the file RECIPE and all that it extends; report every mistake at once.

    What needs the model (its name, its units) is for `usdcore plan` to find.
    """
    from usdcore.recipe import load_recipe, recipe_sha256

    loaded = load_recipe(recipe, overrides)
    click.echo("ok")
    for key, line in _summary(loaded):
        click.echo(f"  {key:<8}{line}")
    click.echo(f"  {'sha256':<8}{recipe_sha256(loaded)}")


@command.command("show")
@click.argument("recipe")
@_SET
@click.option("--json", "as_json", is_flag=True, help="Print the recipe, its origins and its hash as JSON.")
def show(recipe: str, overrides: tuple[str, ...], as_json: bool) -> None:
    """Print RECIPE resolved (defaults written out), with the place that each value comes from."""
    from usdcore.recipe import read_recipe, recipe_sha256
    from usdcore.recipe.dumping import resolved
    from usdcore.recipe.emit import emit, leaves
    from usdcore.recipe.origins import origin_of
    from usdcore.recipe.problems import show_path

    loaded = read_recipe(recipe, overrides)
    content = resolved(loaded.recipe)
    if not as_json:
        click.echo(emit(content, lambda path: origin_of(loaded, path)), nl=False)
        return
    origins = {show_path(path): origin_of(loaded, path) for path in leaves(content)}
    print_json({"recipe": content, "origins": origins, "recipe_sha256": recipe_sha256(loaded.recipe)})


@command.command("schema")
def schema() -> None:
    """Print the JSON schema of recipes, with what the installed plugins add."""
    from usdcore.recipe import recipe_schema

    print_json(recipe_schema())


def _summary(recipe: Recipe) -> list[tuple[str, str]]:
    model, data, budget = recipe.model, recipe.data, recipe.budget
    start = "timm's weights" if model.pretrained else f"weights {model.weights}" if model.weights else "no weights"
    bound = f"{budget.target:g} of the dense {budget.metric}, batch size {budget.batch_size}, scope {budget.scope}"
    if budget.static is not None:
        bound += f"; the shrunk model alone {budget.static:g}"
    lines = [
        ("name", recipe.name),
        ("model", f"{model.name}, {model.num_classes} classes, {start}"),
        ("data", f"{data.source}, {data.input_size} px, batch size {data.batch_size}, augment {data.augment}"),
        ("budget", bound),
        ("seed", str(recipe.seed)),
    ]
    for phase in recipe.phases:
        names = ", ".join(strategy.use for strategy in phase.strategies) or "no strategy"
        lines.append(("phase", f"{phase.name}, {phase.epochs} epochs: {names}"))
    return lines
