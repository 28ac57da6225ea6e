"""Accuracy over the inference batch size: one line a model, shuffled and class-sorted evaluation told apart."""

from __future__ import annotations

import math
from dataclasses import dataclass
from statistics import mean, stdev
from typing import TYPE_CHECKING

from usdcore.report import canvas, text
from usdcore.report.frame import Label, finish, frame, height_for, styles
from usdcore.report.table import Table
from usdcore.report.text import NOT_APPLICABLE

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from pathlib import Path

    from matplotlib.axes import Axes

    from usdcore.report.frame import Frame
    from usdcore.report.result import Evaluation

SHUFFLED = "shuffled"
ALT = "Top-1 accuracy over the batch size at inference, on shuffled and, where measured, on class-sorted images."


@dataclass(frozen=True)
class AtBatch:
    """Top-1 in percent and executed MACs per image at one batch size, a number for each seed."""

    batch_size: int
    top1: tuple[float, ...]
    executed_macs: tuple[float, ...]

    @property
    def mean(self) -> float:
        """Of top-1."""
        return mean(self.top1)

    @property
    def spread(self) -> float | None:
        """Sample standard deviation of top-1 over seeds; None below two."""
        return stdev(self.top1) if len(self.top1) > 1 else None

    @property
    def words(self) -> str:
        """As a table prints it."""
        spread = f" ± {self.spread:.2f}" if self.spread else ""
        return text.top1(self.mean) + spread


@dataclass(frozen=True)
class Series:
    """One line: a model evaluated in one order, its gates deciding in one scope."""

    name: str
    order: str
    scope: str
    points: tuple[AtBatch, ...]

    @property
    def is_shuffled(self) -> bool:
        """As images come in use; the other order is by class, which batches that decide together may profit from."""
        return self.order == SHUFFLED


def series_of(name: str, runs: Iterable[Sequence[Evaluation]]) -> list[Series]:
    """The lines of one model: `runs` has the evaluations of each seed. None where only one batch size was measured."""
    found: dict[tuple[str, str], dict[int, tuple[list[float], list[float]]]] = {}
    for run in runs:
        for row in run:
            if row.top1 is not None and row.batch_size > 0:  # a result may be anybody's
                at = found.setdefault((row.order, row.scope), {}).setdefault(row.batch_size, ([], []))
                at[0].append(row.top1)
                if row.executed_macs is not None:
                    at[1].append(row.executed_macs)
    if len({size for sizes in found.values() for size in sizes}) < 2:
        return []
    return [
        Series(name, order, scope, tuple(AtBatch(size, tuple(a), tuple(b)) for size, (a, b) in sorted(sizes.items())))
        for (order, scope), sizes in sorted(found.items(), key=lambda item: item[0][0] != SHUFFLED)
    ]


def batches_table(series: Sequence[Series]) -> Table:
    """The numbers of the chart."""
    sizes = sorted({at.batch_size for one in series for at in one.points})
    rows = []
    for one in series:
        cells = {at.batch_size: at.words for at in one.points}
        rows.append((one.name, one.order, one.scope, *(cells.get(size, NOT_APPLICABLE) for size in sizes)))
    columns = ("model", "order of images", "decision per", *(f"top-1, batch {size}" for size in sizes))
    return Table(columns, tuple(rows), left=(0, 1, 2))


def draw_batches(series: Sequence[Series], title: str, line: str, path_stem: Path) -> tuple[Path, ...]:
    """Draw the lines and write `path_stem` with .svg, .png and .csv; returns these paths.

    Raises:
        PlotsMissingError: matplotlib is not installed.
    """
    shown = _shown(series)
    names = list(dict.fromkeys(one.name for one in shown))
    style = dict(zip(names, styles(len(names)), strict=True))
    with canvas.new_figure(8.6, height_for(len(names)), path_stem.name) as figure:
        drawing = frame(figure, title, line, labels=True)
        aside = _dodge(names, shown)
        for one in shown:
            _line(drawing.plot, one, style[one.name], aside[one.name])
        _scale(drawing.plot, shown)
        drawing.label([_label(name, shown, style[name], aside[name]) for name in names])
        _legend(drawing, shown)
        header = ("model", "order", "scope", "batch_size", "top1_percent", "top1_spread", "seeds", "executed_macs")
        return canvas.save(figure, path_stem, header, [row for one in series for row in _rows(one)])


def _shown(series: Sequence[Series]) -> list[Series]:
    """In the scope that a model has most of: a single point of another scope is for the table."""
    most: dict[str, int] = {}
    for one in series:
        most[one.name] = max(most.get(one.name, 0), len(one.points))
    scopes = {(one.name, one.scope) for one in series if len(one.points) == most[one.name]}
    return [one for one in series if (one.name, one.scope) in scopes]


def _dodge(names: Sequence[str], series: Sequence[Series]) -> dict[str, float]:
    """What each model's batch sizes are drawn at, as a factor: bars side by side instead of on each other."""
    sizes = [at.batch_size for one in series for at in one.points]
    width = 0.05 * math.log2(max(sizes) / min(sizes)) / max(len(names) - 1, 1) if len(names) > 1 else 0.0
    return {name: 2 ** (width * (i - (len(names) - 1) / 2)) for i, name in enumerate(names)}


def _line(axes: Axes, one: Series, style: tuple[str, str], aside: float) -> None:
    colour, marker = style
    x, y = [at.batch_size * aside for at in one.points], [at.mean for at in one.points]
    # Without an error bar a point's is of no length; None would be one for all of them.
    spreads = [at.spread or 0.0 for at in one.points]
    axes.errorbar(
        x,
        y,
        yerr=spreads if any(spreads) else None,
        color=colour,
        marker=marker,
        markersize=5 if one.is_shuffled else 9,
        markerfacecolor=colour if one.is_shuffled else "none",
        linestyle="-" if one.is_shuffled else (0, (3, 2)),
        linewidth=1.4,
        elinewidth=0.8,
        zorder=3 if one.is_shuffled else 4,
    )


def _scale(axes: Axes, series: Sequence[Series]) -> None:
    sizes = sorted({at.batch_size for one in series for at in one.points})
    axes.set_xscale("log", base=2)
    ticks = _ticks(sizes)
    axes.set_xticks(ticks, [str(size) for size in ticks])
    axes.minorticks_off()
    axes.margins(x=0.05, y=0.1)
    axes.set_xlabel("batch size at inference")
    axes.set_ylabel("top-1 (%)")
    finish(axes)
    axes.set_ylim(axes.get_ylim())


def _ticks(sizes: list[int]) -> list[int]:
    """Those that have room for their number."""
    room = math.log2(sizes[-1] / sizes[0]) / 12
    ticks = sizes[:1]
    for size in sizes[1:]:
        if math.log2(size / ticks[-1]) >= room:
            ticks.append(size)
    return ticks


def _label(name: str, series: Sequence[Series], style: tuple[str, str], aside: float) -> Label:
    """At the last point of the model's first line, with its number there."""
    at = next(one for one in series if one.name == name).points[-1]
    return Label(at.batch_size * aside, at.mean, name, text.top1(at.mean), *style)


def _legend(drawing: Frame, series: Sequence[Series]) -> None:
    """The orders, and the bars where there are any: names stand at their lines."""
    axes, signs = drawing.plot, []
    if any(one.is_shuffled for one in series):
        signs.append(axes.plot([], [], "-o", color=canvas.MUTED, markersize=5, label="shuffled images")[0])
    if not all(one.is_shuffled for one in series):
        sign = axes.plot([], [], "o", color=canvas.MUTED, markersize=9, markerfacecolor="none", linestyle=(0, (3, 2)))
        sign[0].set_label("images sorted by class")
        signs += sign
    if any(at.spread for one in series for at in one.points):
        signs.append(axes.plot([], [], "|", color=canvas.MUTED, markersize=9, label="standard deviation over seeds")[0])
    drawing.legend(len(signs))


def _rows(one: Series) -> Iterable[tuple[object, ...]]:
    for at in one.points:
        macs = mean(at.executed_macs) if at.executed_macs else None
        yield one.name, one.order, one.scope, at.batch_size, at.mean, at.spread, len(at.top1), macs
