"""Read an ablation file, and make of each row and seed the recipe that it means. Imports no torch."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from pydantic import ValidationError
from pydantic_core import to_json

from usdcore.ablate.columns import parse_column
from usdcore.ablate.overlay import cut, lay
from usdcore.ablate.schema import Ablation
from usdcore.errors import UsdcoreError, nearest
from usdcore.hooks import registry
from usdcore.hooks.reference import KINDS
from usdcore.recipe.explain import explain
from usdcore.recipe.loading import validated
from usdcore.recipe.problems import Problem, RecipeError
from usdcore.recipe.sources import apply_overrides, is_there, read_tree
from usdcore.recipe.tree import Node, closest, find, plain

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from usdcore.ablate.schema import At, Claim, Row, Scale
    from usdcore.recipe import Recipe
    from usdcore.recipe.tree import Path as Place


@dataclass(frozen=True)
class LoadedAblation:
    """A file: its sections, and what was written with the origin of every value."""

    path: Path
    ablation: Ablation
    written: Node


@dataclass(frozen=True)
class Line:
    """A row at one scale: its recipe (with the first seed), or why there is none."""

    row: Row
    recipe: Recipe | None
    missing: str | None = None


@dataclass(frozen=True)
class Table:
    """An ablation at one scale: every row, and the seeds."""

    ablation: Ablation
    scale_name: str
    scale: Scale
    seeds: tuple[int, ...]
    lines: tuple[Line, ...]
    overrides: tuple[str, ...] = ()


def read_ablation(path: str | Path) -> LoadedAblation:
    """Read and check a file by itself.

    Raises:
        RecipeError: every mistake, with file, line, column and the nearest valid name.
    """
    problems: list[Problem] = []
    written = read_tree(Path(path), problems)
    ablation: Ablation | None = None
    try:
        ablation = Ablation.model_validate_json(to_json(plain(written), inf_nan_mode="constants"), strict=True)
    except ValidationError as error:
        problems += explain(error, written, Ablation)
    if ablation is not None:
        problems += [Problem(closest(written, at).origin, at, text) for at, text in _together(ablation)]
    if problems or ablation is None:
        raise RecipeError(sorted(problems, key=lambda p: (p.origin.file, p.origin.line, p.origin.column)))
    return LoadedAblation(Path(path), ablation, written)


def _together(ablation: Ablation) -> Iterator[tuple[Place, str]]:
    """What no section shows by itself."""
    seen: set[str] = set()
    if len(set(ablation.report)) < len(ablation.report):
        yield ("report",), "a column is named twice; remove one"
    for name, at in ablation.scales.items():
        if len(set(at.seeds or ())) < len(at.seeds or ()):
            yield ("scales", name, "seeds"), "a seed is named twice; remove one"
    if len(set(ablation.seeds)) < len(ablation.seeds):
        yield ("seeds",), "a seed is named twice; remove one"
    for index, row in enumerate(ablation.rows):
        here: Place = ("rows", index)
        if row.name in seen:
            yield (*here, "name"), f"an earlier row is named {row.name!r}; choose another name"
        seen.add(row.name)
        for key in row.paper:
            if key not in ablation.report:
                yield (*here, "paper", key), f"a claim about what is not reported; {nearest(key, set(ablation.report))}"
        named: list[tuple[Place, str]] = [(("at", scale), scale) for scale in row.at]
        named += [(("only", number), scale) for number, scale in enumerate(row.only)]
        for place, scale in named:
            if scale not in ablation.scales:
                yield (*here, *place), f"there is no scale {scale!r}; {nearest(scale, ablation.scales)}"
        if row.structure is not None and row.model != "compressed":
            yield (*here, "model"), "a structure that is printed layer by layer is the compressed model; leave it out"
    for index, claim in enumerate(ablation.claims):
        yield from _claimed(claim, ("claims", index), seen)


def _claimed(claim: Claim, here: Place, rows: set[str]) -> Iterator[tuple[Place, str]]:
    """What is wrong with a claim: rows that there are not, or nothing that could be judged."""
    named: list[tuple[Place, str]] = [(("row",), claim.row)]
    named += [(("better_than", number), name) for number, name in enumerate(claim.better_than)]
    for place, name in named:
        if name not in rows:
            yield (*here, *place), f"there is no row {name!r}; {nearest(name, rows)}"
    if claim.row in claim.better_than:
        yield (*here, "better_than"), "a row is not better than itself; name others"
    if bool(claim.better_than) == (claim.flat_within is not None):
        yield here, "a claim has either better_than or flat_within; give one of them"
    elif claim.flat_within is not None and len(claim.on) < 2:
        yield (*here, "on"), "flat_within compares columns; name two or more, such as top1@1 and top1@256"


def at_scale(loaded: LoadedAblation, scale: str | None = None, overrides: Sequence[str] = ()) -> Table:
    """The rows at one scale (default: the file's first), each with its recipe.

    Args:
        loaded: the file.
        scale: its name.
        overrides: ``a.b=value`` for every row, as `--set` of a run.

    Raises:
        UsdcoreError: no such scale.
        RecipeError: every mistake in every row's recipe; what a row wrote has the ablation file's line.
    """
    ablation = loaded.ablation
    name = scale if scale is not None else next(iter(ablation.scales))
    if name not in ablation.scales:
        msg = f"{loaded.path}: it has no scale {name!r}; {nearest(name, ablation.scales)}"
        raise UsdcoreError(msg)
    here = ablation.scales[name]
    seeds = here.seeds or ablation.seeds
    maker = _Maker(loaded, name, seeds[0], overrides)
    lines = tuple(maker.line(i, row) for i, row in enumerate(ablation.rows) if not row.only or name in row.only)
    if maker.found:
        problems = [maker.told(problem, rows) for problem, rows in maker.found.items()]
        raise RecipeError(sorted(problems, key=lambda p: (p.origin.file, p.origin.line, p.origin.column)))
    return Table(ablation, name, here, seeds, lines, tuple(overrides))


class _Maker:
    """Makes the recipes of one scale's rows."""

    def __init__(self, loaded: LoadedAblation, scale: str, seed: int, overrides: Sequence[str]) -> None:
        self.loaded, self.name, self.seed, self.overrides = loaded, scale, seed, overrides
        self.scale = loaded.ablation.scales[scale]
        self.found: dict[Problem, list[str]] = {}
        self.made = 0

    def line(self, index: int, row: Row) -> Line:
        """One row."""
        at = row.at.get(self.name)
        missing = (at.missing if at is not None else None) or row.missing or self._unmet(row)
        if missing is not None and row.model != "dense":
            return Line(row, None, missing)
        return Line(row, self._recipe(index, row, at), missing)

    def _unmet(self, row: Row) -> str | None:
        plugins = registry()
        there = {name for kind in KINDS for name in plugins.names(kind)}
        absent = [name for name in row.needs if name not in there]
        return f"needs {' and '.join(absent)}, which no installed plugin registers" if absent else None

    def _recipe(self, index: int, row: Row, at: At | None) -> Recipe | None:
        scale, here = ("scales", self.name), ("rows", index)
        own, found = (*here, "at", self.name), self.loaded.written
        base = (*own, "base") if at is not None and at.base is not None else (*scale, "base")
        noted: list[Problem] = []
        self.made += 1
        tree = self._base(base, noted)
        if tree is None:
            self._note(row, noted)
            return None
        for place in (scale, here, own):
            tree = lay(tree, find(found, (*place, "set")), noted)
            tree = cut(tree, find(found, (*place, "remove")), noted)
        tree = apply_overrides(tree, self.overrides, noted)
        assert isinstance(tree.value, dict)
        tree = Node({**tree.value, "seed": Node(self.seed, tree.origin)}, tree.origin)
        recipe = validated(tree, noted)
        if recipe is not None and not noted:
            noted += self._unmeasured(recipe, here)
            noted += self._untrained(recipe, row, here)
        self._note(row, noted)
        return recipe if recipe is not None and not noted else None

    def _base(self, place: Place, noted: list[Problem]) -> Node | None:
        """The base recipe of a row, unvalidated."""
        node = find(self.loaded.written, place)
        assert node is not None
        path = Path(os.path.normpath(Path(node.origin.file).parent / str(node.value)))
        if not is_there(Path.is_file, path):
            near = sorted(p.name for p in path.parent.glob("*.yaml")) if is_there(Path.is_dir, path.parent) else []
            hint = nearest(path.name, near) if near else "check the path, which counts from this file"
            noted.append(Problem(node.origin, place, f"there is no file {path}; {hint}"))
            return None
        try:
            return read_tree(path, noted)
        except RecipeError as error:
            noted += [problem for problem in error.problems if problem not in noted]
            return None

    def _unmeasured(self, recipe: Recipe, here: Place) -> Iterator[Problem]:
        """Columns at batch sizes that this recipe does not evaluate."""
        sizes = {*recipe.evaluate.batch_sizes, recipe.budget.batch_size}
        for index, key in enumerate(self.loaded.ablation.report):
            size = parse_column(key).batch_size
            if size is not None and size not in sizes:
                text = f"{key}: nothing is evaluated at batch size {size}; add it to evaluate.batch_sizes of the base"
                place: Place = ("report", index)
                yield Problem(closest(self.loaded.written, place).origin, place, text)

    def _untrained(self, recipe: Recipe, row: Row, here: Place) -> Iterator[Problem]:
        """A control that this row shows and its recipe does not train."""
        if row.model not in ("compressed", "dense", *recipe.controls):
            text = f"the row shows the control {row.model}, which its recipe does not train; give it controls: "
            place = (*here, "model")
            yield Problem(closest(self.loaded.written, place).origin, place, f"{text}[{row.model}]")

    def _note(self, row: Row, noted: Sequence[Problem]) -> None:
        for problem in noted:
            self.found.setdefault(problem, []).append(row.name)

    def told(self, problem: Problem, rows: Sequence[str]) -> Problem:
        """A mistake with the rows whose recipes have it, unless that is all of them."""
        if len(rows) == self.made:
            return problem
        more = f" and {len(rows) - 2} more" if len(rows) > 2 else ""
        names = ", ".join(repr(name) for name in rows[:2])
        return Problem(problem.origin, problem.path, f"{problem.text} (scale {self.name}, row {names}{more})")


__all__ = ["Line", "LoadedAblation", "Table", "at_scale", "read_ablation"]
