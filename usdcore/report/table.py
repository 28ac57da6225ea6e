"""Tables: the rows are made once, then rendered for the terminal, as Markdown, or (by the page's template) as HTML."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from usdcore.report import text
from usdcore.report.text import NOT_APPLICABLE, NOT_RUN, escape_markdown

if TYPE_CHECKING:
    from collections.abc import Callable

    import rich.table

    from usdcore.report.result import Latency, Measured, Result


@dataclass(frozen=True)
class Table:
    """Columns and rows of finished text. `left` are the columns that read as words; the others align as numbers."""

    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    caption: str = ""
    left: tuple[int, ...] = (0,)

    def as_records(self) -> list[dict[str, str]]:
        """The rows as a list of mappings from the column's name to the cell, for JSON."""
        return [dict(zip(self.columns, row, strict=True)) for row in self.rows]


def to_markdown(table: Table) -> str:
    """A GitHub-flavoured Markdown table, its caption below it; every cell is escaped."""
    head, *body = (
        "| " + " | ".join(escape_markdown(cell) for cell in row) + " |" for row in (table.columns, *table.rows)
    )
    rule = "| " + " | ".join("---" if i in table.left else "---:" for i in range(len(table.columns))) + " |"
    caption = ["", escape_markdown(table.caption)] if table.caption else []
    return "\n".join([head, rule, *body, *caption])


def to_terminal(table: Table) -> rich.table.Table:
    """A rich table. Cells are plain text: brackets in a user's name are not markup."""
    from rich import box
    from rich.table import Table as RichTable
    from rich.text import Text

    shown = RichTable(
        box=box.SIMPLE_HEAD, caption=Text(table.caption) if table.caption else None, caption_justify="left"
    )
    for i, column in enumerate(table.columns):
        shown.add_column(Text(column), justify="left" if i in table.left else "right")
    for row in table.rows:
        shown.add_row(*(Text(cell) for cell in row))
    return shown


def headline(result: Result) -> Table:
    """The before/after table: one row a quantity, one column a model (dense, compressed, each control)."""
    dense = result.dense
    models = [model for _, model in result.models]
    rows = [_row("Top-1", models, lambda m: _top1_cell(m, dense))]
    if result.compressed.top1_before_finetune is not None:
        before = result.compressed.top1_before_finetune
        cells = (text.top1(before) if m is result.compressed else NOT_APPLICABLE for m in models)
        rows.append(("Top-1 before fine-tuning", *cells))
    rows += [
        _row("MACs", models, lambda m: _share(m.macs, dense.macs, m is dense)),
        _row("Executed MACs", models, lambda m: _share(executed(m), executed(dense), m is dense)),
        _row("Parameters", models, lambda m: _share(m.params, dense.params, m is dense)),
        _row("File size", models, lambda m: text.size(m.file_bytes)),
        _row("Epochs trained", models, lambda m: text.number(m.epochs)),
    ]
    rows += [
        _row(f"Latency, batch {size}", models, lambda m, size=size: _latency_cell(m, size, m is dense))  # type: ignore[misc]
        for size in latency_sizes(result)
    ]
    return Table(("", *(name for name, _ in result.models)), tuple(rows), _caption(result))


def executed(model: Measured) -> float | None:
    """Executed MACs per image: what was measured, or all MACs for a model that skips nothing."""
    return model.macs if model.executed_macs is None else model.executed_macs


def latency_sizes(result: Result) -> tuple[int, ...]:
    """The batch sizes at which at least one model's latency was measured."""
    return tuple(sorted({row.batch_size for _, model in result.models for row in model.latency}))


def latency_at(model: Measured, batch_size: int) -> Latency | None:
    """The measurement at `batch_size`, or None where it was not run."""
    return next((row for row in model.latency if row.batch_size == batch_size), None)


def latency_conditions(result: Result) -> str:
    """In words: which batch sizes, on which device, with how many threads, in which dtype."""
    rows = [row for _, model in result.models for row in model.latency]
    if not rows:
        return f"Latency: {NOT_RUN}."
    devices = {row.device or result.provenance.device for row in rows}
    threads: set[int | None] = {row.threads or result.provenance.threads for row in rows}
    dtypes = {row.dtype for row in rows if row.dtype}
    sizes = ", ".join(map(str, latency_sizes(result)))
    return (
        f"Latency: median of interleaved rounds, milliseconds per batch, at batch size{'s' * (',' in sizes)} {sizes}; "
        f"measured on the machine of this run ({', '.join(sorted(devices))}; {_threads(threads)}; "
        f"{', '.join(sorted(dtypes)) or 'dtype not recorded'}); other machines differ."
    )


def _threads(counts: set[int | None]) -> str:
    known = sorted(count for count in counts if count is not None)
    return ", ".join(f"{count} thread{'s' * (count != 1)}" for count in known) or "threads not recorded"


def _row(label: str, models: list[Measured], cell: Callable[[Measured], str]) -> tuple[str, ...]:
    return (label, *(cell(model) for model in models))


def _top1_cell(model: Measured, dense: Measured) -> str:
    if model.top1 is None or dense.top1 is None or model is dense:
        return text.top1(model.top1)
    return f"{text.top1(model.top1)} ({model.top1 - dense.top1:+.2f})"


def _share(value: float | None, dense: float | None, is_dense: bool) -> str:
    return text.count(value) if is_dense else text.of_dense(value, dense)


def _latency_cell(model: Measured, batch_size: int, is_dense: bool) -> str:
    row = latency_at(model, batch_size)
    if row is None:
        return NOT_RUN
    median = text.milliseconds(row.median_ms)
    return median if is_dense else f"{median} ({row.ratio_to_dense:.2f}x)"


def _caption(result: Result) -> str:
    budget = result.budget
    return (
        "Shares, differences (in points) and ratios are against dense. "
        "MACs: multiply-accumulates per image with every gate on. "
        f"Executed MACs: mean per evaluation image at batch size {budget.batch_size}, gate networks included. "
        + latency_conditions(result)
    )
