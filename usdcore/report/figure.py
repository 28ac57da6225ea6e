"""The two figures of a report: what is kept of each layer (after USDC's Figure 5), and accuracy over cost."""

from __future__ import annotations

from dataclasses import astuple, dataclass, fields
from itertools import cycle
from typing import TYPE_CHECKING, Any

from usdcore.report import canvas, text, words
from usdcore.report.structure import StructureDrawing
from usdcore.report.table import executed

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from usdcore.report.result import Layer, Result

CONTROL_MARKERS = ("s", "^", "D", "v", "P", "X")

# How the two models of every run are drawn; the hollow ring and the star are told apart without colour as well.
MODEL_STYLES: dict[str, dict[str, Any]] = {
    "dense": {
        "label": "dense",
        "marker": "o",
        "s": 62,
        "facecolor": canvas.PAPER,
        "edgecolor": canvas.INK,
        "linewidth": 1.6,
        "zorder": 4,
    },
    "compressed": {
        "label": "compressed, at its budget",
        "marker": "*",
        "s": 210,
        "facecolor": canvas.ACCENT,
        "edgecolor": canvas.PAPER,
        "linewidth": 0.9,
        "zorder": 5,
    },
}


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


def dial_figure(result: Result, path_stem: Path) -> tuple[Path, ...]:
    """Draw top-1 over executed MACs per image: dense, compressed at its budget, the dial, the controls.

    Writes `path_stem` with .svg, .png and .csv, and returns these paths. Models that were not run are left out.

    Raises:
        PlotsMissingError: matplotlib is not installed.
    """
    found = _points(result)
    with canvas.new_figure(7.2, 4.5, path_stem.name) as figure:
        axes = figure.add_axes((0.095, 0.13, 0.875, 0.68))
        scale, prefix = _unit(found)
        _plot(axes, found, scale)
        _mark_budget(axes, result, scale)
        axes.set_xlabel(" ".join(("executed", prefix + "MACs", "per image")))
        axes.set_ylabel("top-1 (%)")
        _title(figure, result)
        _finish(axes)
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


def _unit(found: list[Point]) -> tuple[float, str]:
    largest = max((point.executed_macs for point in found), default=0.0)
    return next(((size, prefix) for size, prefix in ((1e9, "G"), (1e6, "M"), (1e3, "k")) if largest >= size), (1.0, ""))


def _plot(axes: Axes, found: list[Point], scale: float) -> None:
    markers = cycle(CONTROL_MARKERS)
    for point in found:
        if point.series == "dial":
            continue
        style = MODEL_STYLES.get(point.series) or {
            "label": f"control: {text.shorten(point.name, 40)}",
            "marker": next(markers),
            "s": 46,
            "color": canvas.FEED_FORWARD,
            "zorder": 4,
        }
        axes.scatter([point.executed_macs / scale], [point.top1_percent], **style)
    dial = [point for point in found if point.series == "dial"]
    if dial:
        x, y = [point.executed_macs / scale for point in dial], [point.top1_percent for point in dial]
        label = "dial: same weights, other thresholds"
        axes.plot(x, y, "-o", color=canvas.ACCENT, linewidth=1.4, markersize=4.5, label=label, zorder=3)


def _mark_budget(axes: Axes, result: Result, scale: float) -> None:
    dense = executed(result.dense)
    if result.budget.metric != "macs" or not dense:
        return
    label = f"budget asked: {text.percent(result.budget.target)} of dense"
    asked = result.budget.target * dense / scale
    axes.axvline(asked, color=canvas.MUTED, linewidth=1, linestyle=(0, (3, 3)), label=label, zorder=1)


def _title(figure: Figure, result: Result) -> None:
    # In inches on axes of the figure's own size, as the other figure's title.
    width, height = figure.get_size_inches()
    axes = figure.add_axes((0, 0, 1, 1), zorder=-1)
    axes.set_xlim(0, width)
    axes.set_ylim(height, 0)
    axes.set_axis_off()
    title = f"{text.shorten(result.model, 64)}: accuracy over cost"
    canvas.heading(axes, (0.68, 0.4), title, width - 0.9, bold=True)
    canvas.heading(axes, (0.68, 0.64), words.conditions(result), width - 0.9)


def _finish(axes: Axes) -> None:
    axes.margins(x=0.08, y=0.16)
    axes.grid(visible=True, color=canvas.GHOST, linewidth=0.8)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    axes.tick_params(length=0)
    axes.ticklabel_format(useOffset=False)
    if axes.get_legend_handles_labels()[0]:
        axes.legend(loc="best", framealpha=0.9, edgecolor=canvas.LINE, facecolor=canvas.PAPER, fontsize=8)
