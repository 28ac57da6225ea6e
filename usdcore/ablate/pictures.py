"""What a table's pages draw, each with its numbers: accuracy over cost, over batch size, and structures."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from usdcore.ablate.charts import ALT as ACCURACY_ALT
from usdcore.ablate.charts import draw_accuracy
from usdcore.ablate.figures import models, structures
from usdcore.ablate.points import lines, marks, marks_table
from usdcore.files import write_atomic
from usdcore.report.batches import ALT as BATCHES_ALT
from usdcore.report.batches import batches_table, draw_batches
from usdcore.report.canvas import PlotsMissingError
from usdcore.report.figure import draw_structure
from usdcore.report.overview import MOST_MODELS, draw_overview
from usdcore.report.sections import Section
from usdcore.report.table import Table as Printed
from usdcore.report.text import NOT_APPLICABLE, shorten

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    from usdcore.ablate.cells import RowCells
    from usdcore.ablate.exact import Exact
    from usdcore.ablate.figures import Structure
    from usdcore.ablate.loading import Table
    from usdcore.ablate.points import Mark
    from usdcore.report.batches import Series
    from usdcore.report.overview import Model
    from usdcore.report.result import Kept

ACCURACY = "Accuracy over executed MACs"
BATCHES = "Accuracy over inference batch size"
LAYERS = "What is left of each layer"
OVERVIEW_ALT = (
    "For each row, what its first finished run left of each layer: heads and hidden neurons as bars against dense, "
    "execution rates, gate networks."
)
STRUCTURE_ALT = "For each layer: heads and hidden neurons left, as bars against dense, with execution rates."


@dataclass(frozen=True)
class Pictures:
    """The content of every drawing of a table; an empty one is not drawn, and its section says so."""

    line: str
    marks: tuple[Mark, ...]
    series: tuple[Series, ...]
    models: tuple[Model, ...]
    structures: tuple[Structure, ...]


def pictures(table: Table, rows: Sequence[RowCells], exact: Exact) -> Pictures:
    """Of what has been run. Errors: as `Exact.structure`."""
    seeds = ", ".join(map(str, table.seeds))
    scale = f"scale {table.scale_name}: {table.scale.data} · seed{'s' * (len(table.seeds) > 1)} {seeds}"
    found = tuple(marks(table, rows)), tuple(lines(rows)), tuple(models(rows)), tuple(structures(table, rows, exact))
    return Pictures(f"{shorten(table.ablation.title, 80)} · {scale}", *found)


def draw(found: Pictures, folder: Path, stem: str) -> tuple[dict[str, Path], tuple[str, ...]]:
    """Write every drawing and printed plan. Returns the SVGs by their section's key, and why there are none."""
    for structure in found.structures:
        if structure.plan is not None:
            text = structure.plan.model_dump_json(indent=1) + "\n"
            write_atomic(folder / f"{stem}-{structure.key}.plan.json", text.encode())
    try:
        drawn = {key: files for key, files in _drawn(found, folder, stem) if files}
    except PlotsMissingError as missing:
        return {}, (str(missing),)
    return {key: next(path for path in files if path.suffix == ".svg") for key, files in drawn.items()}, ()


def _drawn(found: Pictures, folder: Path, stem: str) -> Iterator[tuple[str, tuple[Path, ...]]]:
    if found.marks:
        yield "accuracy", draw_accuracy(found.marks, ACCURACY, found.line, folder / f"{stem}-accuracy")
    if found.series:
        yield "batches", draw_batches(found.series, BATCHES, found.line, folder / f"{stem}-batches")
    if found.models:
        yield "layers", draw_overview(found.models, LAYERS, found.line, folder / f"{stem}-layers")
    for one in found.structures:
        yield one.key, draw_structure(one.model, one.layers, one.line, folder / f"{stem}-{one.key}")


def picture_sections(found: Pictures) -> Iterator[Section]:
    """A section for each drawing."""
    yield _accuracy(found)
    yield _batches(found)
    yield _layers(found)
    for one in found.structures:
        yield Section(one.key, f"Structure: {one.row}", (), None, one.key, STRUCTURE_ALT)


def _accuracy(found: Pictures) -> Section:
    if not found.marks:
        return Section("accuracy", ACCURACY, ("No row has a finished run yet.",))
    own = any(mark.kind != "paper" for mark in found.marks)
    sentences = () if own else ("No row has a finished run yet: the marks are the paper's.",)
    return Section("accuracy", ACCURACY, sentences, marks_table(found.marks), "accuracy", ACCURACY_ALT, folded=True)


def _batches(found: Pictures) -> Section:
    if not found.series:
        return Section("batches", BATCHES, ("No finished run was evaluated at several batch sizes.",))
    sentences = (
        "One set of weights, evaluated in batches of several sizes. Where gates decide once for a batch its images "
        "share the decision, so it matters how many they are, and whether they are shuffled or sorted by class.",
    )
    return Section("batches", BATCHES, sentences, batches_table(found.series), "batches", BATCHES_ALT, folded=True)


def _layers(found: Pictures) -> Section:
    if not found.models:
        return Section("layers", LAYERS, ("No row has a finished run of a compressed model yet.",))
    first = f"The first {MOST_MODELS} rows are drawn; the table has all." if len(found.models) > MOST_MODELS else ""
    rows = tuple(row for model in found.models for row in _layer_rows(model))
    columns = ("row", "block", "gate network", "heads kept", "MHSA rate", "hidden kept", "FFN rate")
    table = Printed(columns, rows, left=(0, 1, 2))
    return Section("layers", LAYERS, (first,) if first else (), table, "layers", OVERVIEW_ALT, folded=True)


def _layer_rows(model: Model) -> Iterator[tuple[str, ...]]:
    for layer in model.layers:
        network = layer.gate_network or NOT_APPLICABLE
        yield model.name, layer.block, network, *_branch(layer.attention), *_branch(layer.ffn)


def _branch(kept: Kept | None) -> tuple[str, str]:
    if kept is None:
        return NOT_APPLICABLE, NOT_APPLICABLE
    if kept.kept == 0:
        return f"pruned, of {kept.dense}", NOT_APPLICABLE
    return f"{kept.kept} of {kept.dense}", "no gate" if kept.rate is None else f"{kept.rate:.2f}"
