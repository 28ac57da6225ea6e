"""Structures that a page draws, as USDC's Figure 5 does: those that a paper prints, and those that runs found."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from usdcore.report import words

if TYPE_CHECKING:
    from collections.abc import Sequence

    from usdcore.ablate.cells import RowCells
    from usdcore.ablate.exact import Exact
    from usdcore.ablate.loading import Line, Table
    from usdcore.plans import Plan
    from usdcore.report.result import Layer


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
        results = [(job, result) for job, result in row.runs if result is not None and result.structure]
        if row.row.draw and results:
            job, result = results[0]
            title = f"{row.row.name}, seed {job.seed}"
            line = words.conditions(result)
            found.append(Structure(f"structure-{index + 1}", title, result.model, result.structure, line))
    return found


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
