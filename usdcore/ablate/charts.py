"""The chart of accuracy over executed MACs: a mark for each row, its seeds behind it."""

from __future__ import annotations

from itertools import cycle
from typing import TYPE_CHECKING, Any

from usdcore.report import canvas, text
from usdcore.report.frame import Label, finish, frame, height_for, in_units, macs_label

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from matplotlib.axes import Axes

    from usdcore.ablate.points import Mark
    from usdcore.report.frame import Frame

ALT = (
    "Top-1 accuracy over executed multiply-accumulates per image: one mark a row, its seeds lighter, the standard "
    "deviation over seeds as bars."
)
CONTROLS = ("s", "^", "D", "v", "P")

# Told apart by the marker as well as by the colour.
STYLES: dict[str, dict[str, Any]] = {
    "row": {"marker": "o", "color": canvas.ATTENTION, "label": "row"},
    "control": {"color": canvas.FEED_FORWARD, "label": "control"},
    "dense": {"marker": "o", "color": canvas.INK, "markerfacecolor": canvas.PAPER, "label": "dense"},
    "paper": {"marker": "x", "color": canvas.MUTED, "label": "the paper's"},
}


def draw_accuracy(marks: Sequence[Mark], title: str, line: str, path_stem: Path) -> tuple[Path, ...]:
    """Draw the marks and write `path_stem` with .svg, .png and .csv; returns these paths.

    Raises:
        PlotsMissingError: matplotlib is not installed.
    """
    with canvas.new_figure(8.6, height_for(len(marks)), path_stem.name) as figure:
        drawing = frame(figure, title, line, labels=True)
        scale, prefix = in_units(max(mark.macs for mark in marks))
        controls = cycle(CONTROLS)
        styles = [STYLES[mark.kind] | ({"marker": next(controls)} if mark.kind == "control" else {}) for mark in marks]
        for mark, style in zip(marks, styles, strict=True):
            _mark(drawing.plot, mark, scale, style)
        _scale(drawing.plot, prefix)
        drawing.label([_label(mark, scale, style) for mark, style in zip(marks, styles, strict=True)])
        _legend(drawing, marks)
        header = ("row", "kind", "seed", "executed_macs", "top1_percent")
        rows = [(mark.row, mark.kind, p.seed, p.macs, p.top1) for mark in marks for p in mark.points]
        return canvas.save(figure, path_stem, header, rows)


def _mark(axes: Axes, mark: Mark, scale: float, style: dict[str, Any]) -> None:
    if mark.spread is not None:
        x, y = [point.macs / scale for point in mark.points], [point.top1 for point in mark.points]
        axes.plot(x, y, style["marker"], color=style["color"], markersize=3.5, alpha=0.5, linestyle="none", zorder=2)
    macs, top1 = mark.spread or (0.0, 0.0)
    axes.errorbar(
        [mark.macs / scale],
        [mark.top1],
        xerr=macs / scale or None,
        yerr=top1 or None,
        markersize=7,
        linestyle="none",
        elinewidth=0.9,
        capsize=2,
        zorder=3,
        **(style | {"label": None}),
    )


def _scale(axes: Axes, prefix: str) -> None:
    axes.margins(x=0.08, y=0.1)
    axes.set_xlabel(macs_label(prefix))
    axes.set_ylabel("top-1 (%)")
    finish(axes)
    axes.ticklabel_format(axis="x", useOffset=False, style="plain")
    axes.set(xlim=axes.get_xlim(), ylim=axes.get_ylim())


def _label(mark: Mark, scale: float, style: dict[str, Any]) -> Label:
    name = f"paper: {mark.row}" if mark.kind == "paper" else mark.row
    number = text.top1(mark.top1)
    return Label(mark.macs / scale, mark.top1, name, number, style["color"], style["marker"], mark.kind == "dense")


def _legend(drawing: Frame, marks: Sequence[Mark]) -> None:
    """Empty marks of each kind that is there: the drawn ones have bars."""
    axes = drawing.plot
    kinds = [kind for kind in STYLES if any(mark.kind == kind for mark in marks)]
    for kind in kinds:
        axes.plot([], [], linestyle="none", markersize=7, **({"marker": CONTROLS[0]} | STYLES[kind]))
    if any(mark.spread for mark in marks):
        axes.plot([], [], "o", color=canvas.ATTENTION, markersize=3.5, alpha=0.5, label="one seed")
        axes.plot([], [], "|", color=canvas.MUTED, markersize=9, label="standard deviation over seeds")
        kinds += ["row", "row"]
    drawing.legend(len(kinds))
