"""The content of a table's pages: the table itself, its rows explained, the runs behind it with their conditions."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from usdcore.ablate.columns import parse_column
from usdcore.ablate.verdicts import judge
from usdcore.report import text
from usdcore.report.sections import Section
from usdcore.report.table import Table as Printed
from usdcore.report.text import NOT_APPLICABLE

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence

    from usdcore.ablate.cells import Cell, RowCells
    from usdcore.ablate.jobs import Job
    from usdcore.ablate.loading import Table
    from usdcore.report.result import Result

MOST_COLUMNS = 9
"""In one table, that of the rows' names left out: more of them are printed below each other."""


@dataclass(frozen=True)
class _Quantity:
    """One quantity of every row: its place among the columns, and whether anything is claimed about it."""

    index: int
    claimed: bool
    compares: bool

    @property
    def width(self) -> int:
        """How many columns it takes."""
        return 1 + self.claimed + (self.claimed and self.compares)


def sections(table: Table, rows: list[RowCells], drawings: Iterable[Section]) -> tuple[Section, ...]:
    """Everything that the pages show."""
    return (
        *_tables(table, rows),
        *_claims(table, rows),
        *drawings,
        *_notes(table, rows),
        _runs(table, rows),
    )


def progress(table: Table, rows: Sequence[RowCells]) -> str:
    """How much of the table there is, in a sentence."""
    results = {job.key: result for row in rows for job, result in row.runs}
    done = sum(result is not None for result in results.values())
    if not results:
        return "Every number here is exact or a paper's: no row needs a run."
    if done == len(results):
        return f"All {done} runs are finished." if done > 1 else "Its one run is finished."
    how = f"usdcore ablate makes what is missing, with this table's file and --scale {table.scale_name}."
    if done == 0:
        return f"Nothing of this table has been run yet; {len(results)} runs are to be made: {how}"
    return f"{done} of {len(results)} runs are finished: {how}"


def _tables(table: Table, rows: list[RowCells]) -> Iterator[Section]:
    parts = _parts(table, rows)
    for number, part in enumerate(parts, 1):
        title = "Table" if len(parts) == 1 else f"Table, part {number}"
        caption = _caption(table, rows) if number == len(parts) else ""
        yield Section(f"table-{number}", title, (), _printed(table, rows, part, caption))


def _parts(table: Table, rows: list[RowCells]) -> list[list[_Quantity]]:
    """The quantities, as many to a table as there is room for."""
    parts: list[list[_Quantity]] = [[]]
    for index in range(len(table.ablation.report)):
        claimed = any(row.cells[index].paper is not None for row in rows)
        quantity = _Quantity(index, claimed, table.scale.is_papers)
        if parts[-1] and sum(other.width for other in parts[-1]) + quantity.width > MOST_COLUMNS:
            parts.append([])
        parts[-1].append(quantity)
    return parts


def _printed(table: Table, rows: list[RowCells], part: list[_Quantity], caption: str) -> Printed:
    columns = ["row"]
    for quantity in part:
        title = parse_column(table.ablation.report[quantity.index]).title
        names = (f"ours ({table.scale.data})", f"paper ({table.ablation.paper.data})", "difference")
        columns += [f"{title}: {name}" for name in names[: quantity.width]]
    body = tuple((row.row.name, *(cell for one in part for cell in _cells(row.cells[one.index], one))) for row in rows)
    return Printed(tuple(columns), body, caption)


def _cells(cell: Cell, quantity: _Quantity) -> tuple[str, ...]:
    found = cell.difference
    return (cell.ours, cell.papers, NOT_APPLICABLE if found is None else found[1])[: quantity.width]


def _caption(table: Table, rows: list[RowCells]) -> str:
    seeds = ", ".join(map(str, table.seeds))
    words = [f"Ours: mean and standard deviation over the seeds {seeds}." if len(table.seeds) > 1 else f"Seed {seeds}."]
    cells = [cell for row in rows for cell in row.cells]
    if any(cell.status == "exact" for cell in cells):
        words.append("Exact: computed from the model, no training needed.")
    if any(row.is_over_budget for row in rows):
        words.append("*: a run of this row missed its budget.")
    if table.scale.is_papers:
        words.append("Differences: ours against the paper's, in points, or in percent of the paper's for counts.")
    elif any(cell.paper is not None for cell in cells):
        words.append(
            f"The paper's numbers are of {table.ablation.paper.data} and of its models; ours are of "
            f"{table.scale.data}: compare rows with rows, not across."
        )
    return " ".join(words)


def _claims(table: Table, rows: list[RowCells]) -> Iterator[Section]:
    verdicts = judge(table.ablation.claims, rows)
    if verdicts:
        lines = tuple((v.claim.text, v.verdict, "; ".join(one.words for one in v.evidence)) for v in verdicts)
        caption = (
            "Seed by seed, on the seeds that both rows have: mean and standard error, in brackets each seed. A claim "
            "holds where the mean is above zero by more than half of its 95 % confidence interval (Student's t), in "
            "every comparison."
        )
        printed = Printed(("claim", f"on {table.scale.data}", "evidence"), lines, caption, left=(0, 1, 2))
        yield Section("claims", "Claims", (), printed)


def _notes(table: Table, rows: list[RowCells]) -> Iterator[Section]:
    lines = []
    for row in rows:
        words = [f"not here: {row.missing}"] if row.missing is not None else []
        words += [row.row.note] if row.row.note else []
        if row.row.model == "dense" and row.runs:
            words.append(f"the dense model of {_of(row)}")
        if words:
            lines.append((row.row.name, "; ".join(words)))
    if lines:
        yield Section("rows", "Rows", (), Printed(("row", "note"), tuple(lines), left=(0, 1)))


def _of(row: RowCells) -> str:
    names = dict.fromkeys(job.folder.name for job, _ in row.runs)
    return ", ".join(names)


def _runs(table: Table, rows: list[RowCells]) -> Section:
    """One line a run, however many rows show it; what is the same of all finished ones is said once."""
    runs = {job.key: (job, result) for row in rows for job, result in row.runs}
    shared, own = {}, []
    for name, of in _CONDITIONS.items():
        values = {of(result) for _, result in runs.values() if result is not None}
        if len(values) == 1:
            shared[name] = values.pop()
        elif values:
            own.append(name)
    sentences = [f"Scale {table.scale_name}: {table.scale.data}."]
    sentences += [f"Set for every row: {', '.join(table.overrides)}."] if table.overrides else []
    sentences += [f"{name[:1].upper()}{name[1:]} of every finished run: {value}." for name, value in shared.items()]
    if any(job.stem is not None for job, _ in runs.values()):
        sentences.append(
            "Rows that begin with the same dense training share it: it is made once, and what follows is the same as "
            "in a run of its own."
        )
    if not runs:
        return Section("runs", "Runs and their conditions", (*sentences, "No row of this table needs a run."))
    columns = ("run", "state", "budget", "epochs", "duration", "date", "recipe", *own)
    body = tuple(_run(job, result, own) for job, result in runs.values())
    printed = Printed(columns, body, left=tuple(range(len(columns))))
    return Section("runs", "Runs and their conditions", tuple(sentences), printed)


_CONDITIONS: dict[str, Callable[[Result], str]] = {
    "model": lambda result: f"{result.model}, input size {result.input_size}",
    "data": lambda result: (
        f"{result.provenance.data.description or result.provenance.data.source}"
        f" (fingerprint {(result.provenance.data.fingerprint or 'unknown')[:12]})"
    ),
    "device": lambda result: result.provenance.device,
    "versions": lambda result: ", ".join(
        f"{name} {version or 'unknown'}" for name, version in sorted(result.provenance.versions.items())
    ),
}


def _run(job: Job, result: Result | None, own: list[str]) -> tuple[str, ...]:
    asked = f"{text.percent(job.recipe.budget.target)} of {job.recipe.budget.metric}"
    name = f"{job.name}, seed {job.seed}"
    if result is None:
        return (name, job.state, asked, *([NOT_APPLICABLE] * 3), job.key[:12], *([NOT_APPLICABLE] * len(own)))
    return (
        name,
        "done" if result.budget.met else f"budget missed: {result.budget.why}",
        asked,
        text.number(result.compressed.epochs),
        text.duration(result.provenance.seconds),
        result.provenance.date,
        job.key[:12],
        *(_CONDITIONS[condition](result) for condition in own),
    )
