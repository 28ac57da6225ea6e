"""A report's figures: what is kept of each layer (after USDC's Figure 5), accuracy over cost and over batch size."""

from __future__ import annotations

from dataclasses import astuple, dataclass, fields
from itertools import cycle
from typing import TYPE_CHECKING, Any

from usdcore.report import canvas, text, words
from usdcore.report.batches import draw_batches, series_of
from usdcore.report.frame import Label, finish, frame, height_for, in_units, macs_label
from usdcore.report.structure import StructureDrawing
from usdcore.report.table import executed

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from matplotlib.axes import Axes

    from usdcore.report.result import Layer, Result

CONTROL_MARKERS = ("s", "^", "D", "v", "P", "X")

NAMES = {"dense": "dense", "compressed": "compressed, at its budget"}

# How the models of every run are drawn; the hollow ring and the star are told apart without colour as well.
MODEL_STYLES: dict[str, dict[str, Any]] = {
    "dense": {
        "marker": "o",
        "markersize": 8,
        "color": canvas.INK,
        "markerfacecolor": canvas.PAPER,
        "markeredgewidth": 1.6,
        "zorder": 4,
    },
    "compressed": {
        "marker": "*",
        "markersize": 14,
        "color": canvas.ACCENT,
        "markeredgecolor": canvas.PAPER,
        "markeredgewidth": 0.9,
        "zorder": 5,
    },
}
CONTROL_STYLE: dict[str, Any] = {"markersize": 7, "color": canvas.FEED_FORWARD, "zorder": 4}


@dataclass(frozen=True)
class Point:
    """One drawn point, and one row of the CSV; its fields are the CSV's header."""

    series: str
    name: str
    executed_macs: float
    share_of_dense: float | None
    top1_percent: float
    asked_share: float | None = None
    threshold: float | None = None


def structure_figure(result: Result, path_stem: Path) -> tuple[Path, ...]:
    """Draw kept heads and hidden neurons of each block against dense, with execution rates and gate networks.

    Writes `path_stem` with .svg, .png and .csv, and returns these paths.

    Raises:
        PlotsMissingError: matplotlib is not installed.
    """
    return draw_structure(result.model, result.structure, words.conditions(result), path_stem)


def draw_structure(model: str, layers: Sequence[Layer], line: str, path_stem: Path) -> tuple[Path, ...]:
    """The same of any layers of a model, with a line under the title. Raises: as `structure_figure`."""
    drawing = StructureDrawing(model, layers, line)
    header = ("block", "gate_network", "unit", "branch", "kept", "dense", "kept_share", "execution_rate")
    rows = []
    for layer in layers:
        for unit, kept in layer.branches:
            counts = (kept.branch, kept.kept, kept.dense, kept.kept / kept.dense, kept.rate)
            rows.append((layer.block, layer.gate_network, unit, *counts))
    with canvas.new_figure(drawing.width, drawing.height, path_stem.name) as figure:
        drawing.draw(figure)
        return canvas.save(figure, path_stem, header, rows)


def batches_figure(result: Result, path_stem: Path) -> tuple[Path, ...]:
    """Draw the compressed model's top-1 over the batch size at inference; nothing where only one was measured.

    Writes `path_stem` with .svg, .png and .csv, and returns these paths.

    Raises:
        PlotsMissingError: matplotlib is not installed.
    """
    series = series_of("compressed", [result.eval])
    if not series:
        return ()
    title = f"{text.shorten(result.model, 64)}: accuracy over batch size"
    return draw_batches(series, title, words.conditions(result), path_stem)


def dial_figure(result: Result, path_stem: Path) -> tuple[Path, ...]:
    """Draw top-1 over executed MACs per image: dense, compressed at its budget, the dial, the controls.

    Writes `path_stem` with .svg, .png and .csv, and returns these paths. Models that were not run are left out.

    Raises:
        PlotsMissingError: matplotlib is not installed.
    """
    found = _points(result)
    with canvas.new_figure(8.6, height_for(len(found)), path_stem.name) as figure:
        title = f"{text.shorten(result.model, 64)}: accuracy over cost"
        drawing = frame(figure, title, words.conditions(result), labels=True)
        axes = drawing.plot
        scale, prefix = in_units(max((point.executed_macs for point in found), default=0.0))
        labels = _plot(axes, found, scale)
        _mark_budget(axes, result, scale)
        axes.set_xlabel(macs_label(prefix))
        axes.set_ylabel("top-1 (%)")
        axes.margins(x=0.08, y=0.16)
        finish(axes)
        axes.ticklabel_format(axis="x", useOffset=False, style="plain")
        axes.set(xlim=axes.get_xlim(), ylim=axes.get_ylim())
        drawing.label(labels)
        if axes.get_legend_handles_labels()[0]:
            drawing.legend(2)
        header = [field.name for field in fields(Point)]
        return canvas.save(figure, path_stem, header, [astuple(point) for point in found])


def _points(result: Result) -> list[Point]:
    dense = executed(result.dense)
    found = []
    for position, (name, model) in enumerate(result.models):
        macs = executed(model)
        if macs is not None and model.top1 is not None:
            series = name if position < len(MODEL_STYLES) else "control"
            found.append(Point(series, name, macs, macs / dense if dense else None, model.top1))
    for dial in sorted(result.dial, key=lambda dial: dial.executed_macs):
        share = dial.executed_macs / dense if dense else None
        found.append(Point("dial", "dial", dial.executed_macs, share, dial.top1, dial.target, dial.threshold))
    return found


def _plot(axes: Axes, found: list[Point], scale: float) -> list[Label]:
    """Draw every point; returns one label for each model and one for the dial."""
    markers = cycle(CONTROL_MARKERS)
    labels = []
    for point in found:
        if point.series != "dial":
            style = MODEL_STYLES.get(point.series) or CONTROL_STYLE | {"marker": next(markers)}
            x, y = point.executed_macs / scale, point.top1_percent
            axes.plot([x], [y], linestyle="none", **style)
            name = NAMES.get(point.series, f"control: {point.name}")
            hollow = point.series == "dense"
            labels.append(Label(x, y, name, text.top1(y), style["color"], style["marker"], hollow))
    dial = [point for point in found if point.series == "dial"]
    if dial:
        x_dial, y_dial = [point.executed_macs / scale for point in dial], [point.top1_percent for point in dial]
        label = "dial: same weights, other thresholds"
        axes.plot(x_dial, y_dial, "-o", color=canvas.ACCENT, linewidth=1.4, markersize=4.5, label=label, zorder=3)
        labels.append(Label(x_dial[0], y_dial[0], "dial, at its cheapest", text.top1(y_dial[0]), canvas.ACCENT, "o"))
    return labels


def _mark_budget(axes: Axes, result: Result, scale: float) -> None:
    dense = executed(result.dense)
    if result.budget.metric != "macs" or not dense:
        return
    label = f"budget asked: {text.percent(result.budget.target)} of dense"
    asked = result.budget.target * dense / scale
    axes.axvline(asked, color=canvas.MUTED, linewidth=1, linestyle=(0, (3, 3)), label=label, zorder=1)
