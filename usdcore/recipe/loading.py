"""Read a recipe: files, overrides, validation; every mistake at once, each with its position."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from pydantic import ValidationError
from pydantic_core import to_json

from usdcore.recipe.document import MAX_BYTES, MAX_VALUES, Allowance
from usdcore.recipe.dumping import fits
from usdcore.recipe.explain import explain
from usdcore.recipe.problems import Problem, RecipeError
from usdcore.recipe.schema import Recipe
from usdcore.recipe.sources import apply_overrides, of_override, read_tree
from usdcore.recipe.together import mistakes_together
from usdcore.recipe.tree import plain

if TYPE_CHECKING:
    from collections.abc import Sequence

    from usdcore.recipe.tree import Node


@dataclass(frozen=True)
class LoadedRecipe:
    """A recipe, and what was written (files merged, overrides applied) with the origin of every value."""

    recipe: Recipe
    written: Node


def load_recipe(path: str | Path, overrides: Sequence[str] = ()) -> Recipe:
    """Read, merge and validate a recipe.

    A file may extend others (``extends: base.yaml``, or a list; relative to the file). Relative paths in a recipe (the
    model's weights, the data's root) are relative to the current directory, so that a recipe can be shared.

    Args:
        path: a YAML file.
        overrides: ``a.b=value`` each, the value as YAML; ``phases.0.epochs=3`` addresses a list's item.

    Raises:
        RecipeError: its `problems` are all mistakes, with file, line, column and what to do.
    """
    return read_recipe(path, overrides).recipe


def read_recipe(path: str | Path, overrides: Sequence[str] = ()) -> LoadedRecipe:
    """Like `load_recipe`, and keeps what was written."""
    problems: list[Problem] = []
    allowance = Allowance()
    written = apply_overrides(read_tree(Path(path), problems, allowance), overrides, problems, allowance)
    recipe = validated(written, problems)
    if problems or recipe is None:
        raise RecipeError(_in_order(problems, overrides))
    return LoadedRecipe(recipe, written)


def validated(written: Node, problems: list[Problem]) -> Recipe | None:
    """The recipe that a tree means; its mistakes are added to `problems`. None where it means none."""
    recipe: Recipe | None = None
    try:
        # As JSON, because only there strict checks still take a list for a tuple and a string for a path.
        recipe = Recipe.model_validate_json(to_json(plain(written), inf_nan_mode="constants"), strict=True)
    except ValidationError as error:
        problems += explain(error, written, Recipe)
    problems += mistakes_together(written, recipe)
    if recipe is not None and not fits(recipe):
        size = f"{MAX_BYTES} bytes or {MAX_VALUES} values"
        text = f"with its defaults written out, the recipe is larger than {size}; use fewer phases or shorter lists"
        problems.append(Problem(written.origin, (), text))
    return recipe


def _in_order(problems: list[Problem], overrides: Sequence[str]) -> list[Problem]:
    """Files first, in reading order; then overrides, as they were given."""
    given = {of_override(text): number for number, text in enumerate(overrides)}

    def position(problem: Problem) -> tuple[bool, str, int, int, int]:
        origin = problem.origin
        number = given.get(origin, -1)
        return (number >= 0, origin.file if number < 0 else "", number, origin.line, origin.column)

    return sorted(problems, key=position)
