"""The report's content as sections of sentences, tables and figures, which the Markdown and the HTML both render."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from usdcore.report import text, words
from usdcore.report.batches import ALT as BATCHES_ALT
from usdcore.report.table import Table, headline, latency_at, latency_conditions, latency_sizes
from usdcore.report.text import NOT_APPLICABLE, NOT_RUN

if TYPE_CHECKING:
    from usdcore.report.result import Kept, KeptAttention, Result


@dataclass(frozen=True)
class Section:
    """One heading of the report. `figure` is the stem of a file in `figures/`, `alt` what it shows in words.

    `folded`: its table has the numbers of the figure; the page shows it on demand, the Markdown leaves it out.
    """

    key: str
    title: str
    sentences: tuple[str, ...] = ()
    table: Table | None = None
    figure: str | None = None
    alt: str = ""
    folded: bool = False


def sections(result: Result) -> tuple[Section, ...]:
    """Every section of the report, in the order in which a reader wants to know."""
    return (
        Section(
            "headline",
            "Before and after",
            (
                *(words.comparison(result, control) for control in result.controls),
                *(f"Warning: {warned.text}." for warned in result.warnings),
            ),
            headline(result),
        ),
        Section("budget", "Budget", words.budget_sentences(result), _budget_table(result)),
        _evaluation(result),
        _dial(result),
        _structure(result),
        Section("gates", "Gates", words.gate_sentences(result), _gates_table(result)),
        _latency(result),
        Section("phases", "Phases", (), _phases_table(result)),
        Section("conditions", "Conditions", ("Every number above holds under these.",), _conditions_table(result)),
    )


def _budget_table(result: Result) -> Table:
    budget = result.budget
    rows = (
        ("asked", text.percent(budget.target)),
        ("after the search, before the projection", text.percent(budget.after_search)),
        ("shrunk model, every gate on", text.percent(budget.static)),
        ("calibrated, on calibration images", text.percent(budget.calibrated)),
        ("measured, on evaluation images", text.percent(budget.achieved)),
        ("tolerance", text.points(budget.tolerance)),
        ("verdict", "met" if budget.met else "MISSED"),
    )
    return Table(("stage", f"{words.metric(result)}, of dense"), rows)


def _evaluation(result: Result) -> Section:
    dense = result.dense.macs
    rows = tuple(
        (
            str(row.batch_size),
            row.scope,
            row.order,
            text.top1(row.top1),
            text.of_dense(row.executed_macs, dense),
            NOT_RUN if row.images is None else str(row.images),
            words.promise(result, row),
        )
        for row in result.eval
    )
    columns = ("batch size", "scope", "order", "top-1", "executed MACs (of dense)", "images", "status")
    sentence = (
        "The budget is promised for one batch size and scope, on shuffled images; "
        "every other row is reported, not promised."
    )
    if not rows:
        return Section("evaluation", "Evaluation over batch sizes", (f"Evaluation over batch sizes: {NOT_RUN}.",))
    table = Table(columns, rows, left=(1, 2, 6))
    return Section("evaluation", "Evaluation over batch sizes", (sentence,), table, "batches", BATCHES_ALT)


def _dial(result: Result) -> Section:
    dense = result.dense.macs
    rows = tuple(
        (
            text.percent(point.target),
            text.number(point.threshold),
            text.of_dense(point.executed_macs, dense),
            text.top1(point.top1),
        )
        for point in result.dial
    )
    sentence = "One set of weights, run at other costs by moving the gates' threshold; no training in between."
    table = (
        Table(("asked, of dense", "threshold", "executed MACs (of dense)", "top-1"), rows, left=()) if rows else None
    )
    return Section(
        "dial",
        "Dial: accuracy over cost",
        (sentence if rows else f"The dial (the same weights at other thresholds): {NOT_RUN}.",),
        table,
        "dial",
        "Top-1 accuracy over executed multiply-accumulates of the dense model, the compressed model and its controls.",
    )


def _structure(result: Result) -> Section:
    if not result.structure:
        return Section("structure", "Structure", (f"The model's structure: {NOT_RUN}.",))
    is_ragged = any(layer.attention is not None and layer.attention.dims for layer in result.structure)
    rows = tuple(
        (
            layer.block,
            layer.gate_network or NOT_APPLICABLE,
            *_branch_cells(layer.attention),
            *_branch_cells(layer.ffn),
            *((_dims(layer.attention),) if is_ragged else ()),
        )
        for layer in result.structure
    )
    columns: tuple[str, ...] = (
        "block",
        "gate network",
        "heads",
        "heads, dense",
        "MHSA rate",
        "hidden",
        "hidden, dense",
        "FFN rate",
    )
    columns += ("value dims of each head",) if is_ragged else ()
    sentences = (
        "What is kept of each block; a rate says how often a gated branch was executed on the evaluation images. "
        "A branch without a gate is always executed.",
    )
    return Section(
        "structure",
        "Structure",
        sentences,
        Table(columns, rows, left=(0, 1)),
        "structure",
        "For each block: heads and hidden neurons kept, as bars against the dense model, with execution rates.",
    )


def _dims(kept: KeptAttention | None) -> str:
    return NOT_APPLICABLE if kept is None or not kept.dims else " ".join(str(number) for number in kept.dims)


def _branch_cells(kept: Kept | None) -> tuple[str, str, str]:
    if kept is None:
        return NOT_APPLICABLE, NOT_APPLICABLE, NOT_APPLICABLE
    if kept.kept == 0:
        return "pruned", str(kept.dense), NOT_APPLICABLE
    return str(kept.kept), str(kept.dense), "no gate" if kept.rate is None else f"{kept.rate:.2f}"


def _gates_table(result: Result) -> Table | None:
    gates = result.gates
    if gates.decisions == 0:
        return None
    columns = (
        "cost of all gate networks",
        "MACs per image (counted in the budget)",
        "paper's rule, 2 x in x out + out a linear map (not in the budget)",
    )
    return Table(columns, (("per image", text.of_dense(gates.macs, result.dense.macs), text.count(gates.paper_flops)),))


def _latency(result: Result) -> Section:
    rows = []
    for name, model in result.models:
        for batch_size in latency_sizes(result):
            row = latency_at(model, batch_size)
            cells = (
                (NOT_RUN, NOT_RUN, NOT_RUN)
                if row is None
                else (text.milliseconds(row.median_ms), text.milliseconds(row.iqr_ms), f"{row.ratio_to_dense:.2f}x")
            )
            rows.append((name, str(batch_size), *cells))
    table = Table(("model", "batch size", "median", "interquartile range", "of dense"), tuple(rows)) if rows else None
    return Section("latency", "Latency", (latency_conditions(result),), table)


def _phases_table(result: Result) -> Table:
    rows = tuple(
        (
            phase.name,
            ", ".join(phase.strategies) or NOT_APPLICABLE,
            text.number(phase.epochs),
            text.duration(phase.seconds),
            NOT_APPLICABLE if phase.macs_after is None else text.of_dense(phase.macs_after, result.dense.macs),
            text.top1(phase.top1_after),
        )
        for phase in result.phases
    )
    return Table(("phase", "strategies", "epochs", "time", "MACs after (of dense)", "top-1 after"), rows, left=(0, 1))


def _conditions_table(result: Result) -> Table:
    source = result.provenance
    data = source.data
    images = ", ".join(
        f"{count} {name}"
        for name, count in (("training", data.train_images), ("test", data.test_images))
        if count is not None
    )
    rows = [
        ("recipe", f"{result.recipe} (sha256 {result.recipe_sha256})"),
        ("model", f"{result.model}, input size {result.input_size}, {result.num_classes} classes"),
        ("data", f"{data.source}: {data.description}" if data.description else data.source),
        ("images", images or "not recorded"),
        ("data fingerprint", data.fingerprint or "not recorded"),
        ("seed", str(source.seed)),
        ("device", source.device),
        ("threads", "not recorded" if source.threads is None else str(source.threads)),
        ("duration", text.duration(source.seconds)),
        ("date", source.date),
        ("commit", source.commit or "not recorded"),
        ("versions", ", ".join(f"{name} {version}" for name, version in sorted(_versions(result).items()))),
    ]
    return Table(("condition", "value"), tuple(rows), left=(0, 1))


def _versions(result: Result) -> dict[str, str]:
    return {"usdcore": result.usdcore} | {
        name: value or "unknown" for name, value in result.provenance.versions.items()
    }
