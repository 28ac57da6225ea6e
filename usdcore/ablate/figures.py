"""Structures that a page draws, as USDC's Figure 5 does: those that a paper prints, and those that runs found."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from usdcore.report import text, words
from usdcore.report.overview import Model

if TYPE_CHECKING:
    from collections.abc import Sequence

    from usdcore.ablate.cells import RowCells
    from usdcore.ablate.exact import Exact
    from usdcore.ablate.jobs import Job
    from usdcore.ablate.loading import Line, Table
    from usdcore.plans import Plan
    from usdcore.report.result import Layer, Result


@dataclass(frozen=True)
class Structure:
    """One drawing: `key` names its file, `line` stands under its title; `plan` of a printed structure."""

    key: str
    row: str
    model: str
    layers: tuple[Layer, ...]
    line: str
    plan: Plan | None = None


def structures(table: Table, rows: Sequence[RowCells], exact: Exact) -> list[Structure]:
    """Printed structures, then the first finished run of each row that asks for it. Errors: as `Exact.structure`."""
    found = [_printed(table, line, key, exact) for key, line in _to_draw(table).items()]
    for index, row in enumerate(rows):
        first = first_run(row)
        if row.row.draw and first is not None:
            job, result = first
            title = f"{row.row.name}, seed {job.seed}"
            line = words.conditions(result)
            found.append(Structure(f"structure-{index + 1}", title, result.model, result.structure, line))
    return found


def models(rows: Sequence[RowCells]) -> list[Model]:
    """What the first finished run of every row left of each layer, for one drawing of them all."""
    found = []
    for row in rows:
        first = first_run(row)
        if first is not None:
            job, result = first
            left, dense = result.compressed.macs, result.dense.macs
            share = f", {text.percent(left / dense)} of dense MACs" if left is not None and dense else ""
            found.append(Model(row.row.name, f"seed {job.seed}{share}", result.structure))
    return found


def first_run(row: RowCells) -> tuple[Job, Result] | None:
    """The first finished run of a row that shows a compressed model, where its structure is known."""
    if row.row.model != "compressed":
        return None
    return next(((job, result) for job, result in row.runs if result is not None and result.structure), None)


def _to_draw(table: Table) -> dict[str, Line]:
    """By key; of several with the same heads and neurons the last, which says most."""
    found: dict[tuple[tuple[int, int], ...], tuple[str, Line]] = {}
    for index, line in enumerate(table.lines):
        if line.row.structure is not None and line.recipe is not None:
            counts = tuple((layer.heads, layer.hidden) for layer in line.row.structure)
            found[counts] = f"structure-{index + 1}", line
    return dict(found.values())


def _printed(table: Table, line: Line, key: str, exact: Exact) -> Structure:
    assert line.recipe is not None
    found = exact.structure(line)
    under = f"{table.ablation.paper.cite}: {line.row.name}"
    return Structure(key, line.row.name, line.recipe.model.name, found.layers, under, found.plan)
