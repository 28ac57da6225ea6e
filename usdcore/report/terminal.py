"""What a command prints at its end: the before/after table of a run, or the rows of an evaluation."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from rich.console import Console

from usdcore.report import text, words
from usdcore.report.result import Evaluation, read_result
from usdcore.report.table import Table, headline, to_terminal

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from pathlib import Path


def print_result(run_dir: Path, notes: Sequence[str] = ()) -> None:
    """The before/after table, the saved model over batch sizes, whether the budget was met, where the report lies."""
    result = read_result(run_dir)
    console = Console()
    console.print(to_terminal(headline(result)))
    if result.eval:
        console.print(to_terminal(_over_batches(result.eval, result.dense.macs)))
    for line in (words.verdict(result), *notes, f"report: {run_dir / 'report.html'}"):
        console.print(line, markup=False, highlight=False, soft_wrap=True)


def print_evaluation(found: dict[str, Any]) -> None:
    """The rows of `usdcore eval`: the model at several batch sizes, and at a budget that was asked for."""
    dense = found["dense_macs"]
    console = Console()
    if "dial" in found:
        dial = found["dial"]
        line = (
            f"asked {dial['target']:g}, executed {dial['executed_macs'] / dense:.4f} of the dense MACs at threshold "
            f"{dial['threshold']:.4f}: top-1 {text.top1(dial['top1'])}"
        )
        console.print(line, markup=False, highlight=False, soft_wrap=True)
    if "eval" in found:
        rows = [Evaluation.model_validate(row) for row in found["eval"]]
        console.print(to_terminal(_over_batches(rows, dense)))


def _over_batches(rows: Iterable[Evaluation], dense_macs: float | None) -> Table:
    cells = tuple(
        (
            str(row.batch_size),
            row.scope,
            row.order,
            text.top1(row.top1),
            text.of_dense(row.executed_macs, dense_macs),
            text.NOT_RUN if row.images is None else str(row.images),
        )
        for row in rows
    )
    return Table(("Batch size", "Decision per", "Order", "Top-1", "Executed MACs", "Images"), cells, left=(1, 2))
