"""What the charts of a table show: its finished runs as points, and the paper's where they may be compared."""

from __future__ import annotations

from dataclasses import dataclass
from statistics import mean, stdev
from typing import TYPE_CHECKING, Literal

from usdcore.ablate.columns import measured, parse_column
from usdcore.report import text
from usdcore.report.batches import series_of
from usdcore.report.table import Table as Printed
from usdcore.report.text import NOT_APPLICABLE

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from usdcore.ablate.cells import RowCells
    from usdcore.ablate.loading import Table
    from usdcore.ablate.schema import Row
    from usdcore.report.batches import Series

Kind = Literal["row", "dense", "control", "paper"]
"""Of a mark. Control: what the others have to beat, a control of a run or a row that says so."""

KINDS: dict[Kind, str] = {"row": "ours", "dense": "ours, dense", "control": "ours, control", "paper": "the paper's"}

_MACS, _TOP1 = parse_column("executed_macs"), parse_column("top1")


@dataclass(frozen=True)
class Point:
    """One run: executed MACs per image, top-1 in percent. `seed` is None of a paper's."""

    seed: int | None
    macs: float
    top1: float


@dataclass(frozen=True)
class Mark:
    """One row's place in the chart of accuracy over cost: the mean over its points."""

    row: str
    kind: Kind
    points: tuple[Point, ...]
    dense_macs: float | None = None

    @property
    def macs(self) -> float:
        """Mean."""
        return mean(point.macs for point in self.points)

    @property
    def top1(self) -> float:
        """Mean."""
        return mean(point.top1 for point in self.points)

    @property
    def spread(self) -> tuple[float, float] | None:
        """Sample standard deviations of MACs and of top-1; None below two points."""
        if len(self.points) < 2:
            return None
        return stdev(point.macs for point in self.points), stdev(point.top1 for point in self.points)


def marks(table: Table, rows: Sequence[RowCells]) -> list[Mark]:
    """Of every row with a finished run; the paper's too, where data and setting are the paper's."""
    found = []
    for row in rows:
        points = []
        dense = None
        for job, result in row.runs:
            if result is not None:
                macs, top1 = measured(_MACS, result, row.row.model), measured(_TOP1, result, row.row.model)
                dense = result.dense.macs
                if macs is not None and top1 is not None:
                    points.append(Point(job.seed, macs, top1))
        if points:
            found.append(Mark(row.row.name, _kind(row.row), tuple(points), dense))
        if table.scale.is_papers:
            found += _claimed(row.row)
    return found


def _kind(row: Row) -> Kind:
    if row.model == "dense":
        return "dense"
    return "control" if row.control or row.model != "compressed" else "row"


def _claimed(row: Row) -> Iterator[Mark]:
    macs, top1 = row.paper.get(_MACS.key), row.paper.get(_TOP1.key)
    if isinstance(macs, int | float) and isinstance(top1, int | float):
        yield Mark(row.name, "paper", (Point(None, macs, top1),))


def marks_table(found: Sequence[Mark]) -> Printed:
    """The numbers of the chart, each seed's too."""
    seeds = sorted({point.seed for mark in found for point in mark.points if point.seed is not None})
    columns = ("row", "whose", "executed MACs", "of dense", "top-1", *(f"seed {seed}" for seed in seeds))
    return Printed(columns, tuple(_line(mark, seeds) for mark in found), left=(0, 1))


def _line(mark: Mark, seeds: Sequence[int]) -> tuple[str, ...]:
    macs, top1 = mark.spread or (0.0, 0.0)
    each = {point.seed: f"{text.top1(point.top1)} at {text.count(point.macs)}" for point in mark.points}
    return (
        mark.row,
        KINDS[mark.kind],
        text.count(mark.macs) + (f" ± {text.count(macs)}" if macs else ""),
        NOT_APPLICABLE if not mark.dense_macs else text.percent(mark.macs / mark.dense_macs),
        text.top1(mark.top1) + (f" ± {top1:.2f}" if top1 else ""),
        *(each.get(seed, NOT_APPLICABLE) for seed in seeds),
    )


def lines(rows: Sequence[RowCells]) -> list[Series]:
    """Accuracy over batch size of every compressed row that was evaluated at several."""
    found = []
    for row in rows:
        if row.row.model == "compressed":
            found += series_of(row.row.name, [result.eval for _, result in row.runs if result is not None])
    return found
