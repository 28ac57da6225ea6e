"""What a table shows in each cell: ours over the seeds, the paper's, and the difference where there may be one."""

from __future__ import annotations

import math
from dataclasses import dataclass
from statistics import mean, stdev
from typing import TYPE_CHECKING, Any, Literal

from usdcore.ablate.columns import (
    OF_COMPRESSED,
    Column,
    difference,
    measured,
    parse_column,
    show,
    show_claim,
    show_spread,
)
from usdcore.report.text import NOT_APPLICABLE, NOT_RUN

if TYPE_CHECKING:
    from usdcore.ablate.exact import Exact
    from usdcore.ablate.jobs import Job, Jobs
    from usdcore.ablate.loading import Line, Table
    from usdcore.ablate.schema import Row
    from usdcore.report.result import Result

NOT_HERE = "not here"
"""A row whose method or data does not exist here."""

Status = Literal["measured", "exact", "not run", "not here", "none"]
"""Of a cell; none: the row has no such number."""


@dataclass(frozen=True)
class Cell:
    """One quantity of one row. `values` has a number for each finished seed, or the exact one."""

    column: Column
    status: Status
    values: tuple[float, ...] = ()
    num_seeds: int = 1
    paper: float | str | None = None
    compares: bool = False
    is_over_budget: bool = False

    @property
    def mean(self) -> float | None:
        """Over seeds."""
        return mean(self.values) if self.values else None

    @property
    def spread(self) -> float | None:
        """Sample standard deviation over seeds; None below two."""
        return stdev(self.values) if len(self.values) > 1 else None

    @property
    def difference(self) -> tuple[float, str] | None:
        """Ours against the paper's, where data and setting are the paper's."""
        if not self.compares or self.mean is None or not isinstance(self.paper, int | float):
            return None
        return difference(self.column, self.mean, self.paper)

    @property
    def ours(self) -> str:
        """As it is printed."""
        if self.mean is None:
            return {"not run": NOT_RUN, "not here": NOT_HERE}.get(self.status, NOT_APPLICABLE)
        words = show(self.column, self.mean)
        if self.status == "exact":
            return f"{words} (exact)"
        if self.spread:
            words += f" ± {show_spread(self.column, self.spread)}"
        if len(self.values) < self.num_seeds:
            words += f" ({len(self.values)} of {self.num_seeds} seeds)"
        return f"{words} *" if self.is_over_budget else words

    @property
    def papers(self) -> str:
        """As it is printed."""
        if self.paper is None:
            return NOT_APPLICABLE
        return self.paper if isinstance(self.paper, str) else show_claim(self.column, self.paper)

    def as_json(self) -> dict[str, Any]:
        """For programs."""
        found = self.difference
        return {
            "status": self.status,
            "mean": self.mean,
            "spread": self.spread,
            "values": list(self.values),
            "paper": self.paper,
            "difference": None if found is None else found[0],
        }


@dataclass(frozen=True)
class RowCells:
    """A row with its cells, in the order of the columns, and the runs behind them with what they found."""

    row: Row
    cells: tuple[Cell, ...]
    runs: tuple[tuple[Job, Result | None], ...] = ()
    missing: str | None = None

    @property
    def is_over_budget(self) -> bool:
        """Whether a finished run of a compressed model missed its budget."""
        return self.row.model == "compressed" and any(r is not None and not r.budget.met for _, r in self.runs)


def collect(table: Table, jobs: Jobs, exact: Exact) -> list[RowCells]:
    """Every row of a table. Errors: as `Exact.values`."""
    columns = [parse_column(key) for key in table.ablation.report]
    return [_row(table, line, columns, jobs.of(line.row.name, table.seeds), exact.values(line)) for line in table.lines]


def _row(table: Table, line: Line, columns: list[Column], jobs: list[Job], known: dict[str, float]) -> RowCells:
    row, missing = line.row, line.missing
    runs = tuple((job, job.result()) for job in jobs)
    found = [result for _, result in runs if result is not None]
    over = row.model == "compressed" and any(not result.budget.met for result in found)
    is_run = missing is None and row.structure is None
    cells = []
    for column in columns:
        status, values = _values(column, row, found, known, is_run=is_run)
        if missing is not None and status != "exact":
            status = "not here"
        if status == "none" and is_run and not found and _has(column, row):
            status = "not run"
        claim = row.paper.get(column.key)
        cells.append(
            Cell(column, status, values, len(table.seeds), claim, table.scale.is_papers, over and status == "measured")
        )
    return RowCells(row, tuple(cells), runs, missing)


def _values(
    column: Column, row: Row, found: list[Result], known: dict[str, float], *, is_run: bool
) -> tuple[Status, tuple[float, ...]]:
    """Dense costs and printed structures are computed; gate networks only while no run says which of them are left."""
    is_certain = row.model == "dense" or not is_run
    if column.key in known and (is_certain or not found):
        return "exact", (known[column.key],)
    numbers = [measured(column, result, row.model) for result in found]
    values = tuple(number for number in numbers if number is not None and math.isfinite(number))
    return ("measured", values) if values else ("none", ())


def _has(column: Column, row: Row) -> bool:
    """Whether a run of the row would have this number."""
    if row.model == "compressed":
        return column.quantity != "block_share"
    return column.batch_size is None and column.quantity not in OF_COMPRESSED
