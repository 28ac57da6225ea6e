"""Draws what is kept of each layer of several models below each other, small: a strip for each kind of branch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from usdcore.report import canvas, text
from usdcore.report.structure import SMALL, UNITS, box, legend

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from matplotlib.axes import Axes

    from usdcore.report.result import Kept, Layer

NAME_X = 0.3
CELLS_X = 2.55
CELL = 0.54
PITCH = 0.62
BAR = 0.13
STRIP = 0.31
NETWORK = 0.16
GAP = 0.16
HEAD = 1.15
FOOT = 0.62

MOST_MODELS = 40
"""In one drawing: the table beside it has all."""


@dataclass(frozen=True)
class Model:
    """One model: its name, what stands under it, its layers."""

    name: str
    note: str
    layers: tuple[Layer, ...]

    @property
    def units(self) -> tuple[str, ...]:
        """The strips that it has."""
        there = {unit for layer in self.layers for unit, _ in layer.branches}
        return tuple(unit for unit in UNITS if unit in there)

    @property
    def has_networks(self) -> bool:
        """Whether any layer has a gate network."""
        return any(layer.gate_network is not None for layer in self.layers)

    @property
    def height(self) -> float:
        """In inches; the name and its note need two lines."""
        return max(0.4, STRIP * len(self.units) + NETWORK * self.has_networks) + GAP


def draw_overview(models: Sequence[Model], title: str, line: str, path_stem: Path) -> tuple[Path, ...]:
    """Draw the first `MOST_MODELS` and write `path_stem` with .svg, .png and .csv (of all); returns these paths.

    Raises:
        PlotsMissingError: matplotlib is not installed.
    """
    drawn = models[:MOST_MODELS]
    most = max(len(model.layers) for model in drawn)
    width = max(CELLS_X + PITCH * most + 0.2, 6.2)
    height = HEAD + sum(model.height for model in drawn) + FOOT
    with canvas.new_figure(width, height, path_stem.name) as figure:
        axes = figure.add_axes((0, 0, 1, 1))
        axes.set_xlim(0, width)
        axes.set_ylim(height, 0)
        axes.set_axis_off()
        canvas.heading(axes, (NAME_X, 0.43), title, width - NAME_X - 0.2, bold=True)
        canvas.heading(axes, (NAME_X, 0.66), line, width - NAME_X - 0.2)
        axes.text(CELLS_X - 0.08, HEAD - 0.15, "block", ha="right", **SMALL)
        for i in range(most):
            axes.text(CELLS_X + PITCH * i, HEAD - 0.15, str(i), **SMALL)
        y = HEAD
        for model in drawn:
            axes.plot([NAME_X, width - 0.2], [y - 0.03] * 2, color=canvas.GHOST, linewidth=0.8)
            _model(axes, model, y + 0.03)
            y += model.height
        legend(axes, NAME_X, y + 0.2)
        axes.text(
            NAME_X, y + 0.4, "under a bar: how many are kept; right: how often a gated branch is executed", **SMALL
        )
        header = ("model", "block", "gate_network", "unit", "branch", "kept", "dense", "execution_rate")
        return canvas.save(figure, path_stem, header, [row for model in models for row in _rows(model)])


def _model(axes: Axes, model: Model, y: float) -> None:
    axes.text(NAME_X, y + 0.1, text.shorten(model.name, 24), fontsize=8.5, fontweight="bold", va="center")
    axes.text(NAME_X, y + 0.27, text.shorten(model.note, 30), **SMALL)
    for unit in model.units:
        axes.text(CELLS_X - 0.08, y + BAR / 2, unit, ha="right", **SMALL)
        for i, layer in enumerate(model.layers):
            kept = dict(layer.branches).get(unit)
            if kept is not None:
                _cell(axes, unit, kept, (CELLS_X + PITCH * i, y))
        y += STRIP
    if model.has_networks:
        axes.text(CELLS_X - 0.08, y + 0.04, "gates", ha="right", **SMALL)
        for i, layer in enumerate(model.layers):
            if layer.gate_network is not None:
                network = text.shorten(layer.gate_network, 8)
                axes.text(CELLS_X + PITCH * i, y + 0.04, network, **SMALL | {"fontsize": 6.8})


def _cell(axes: Axes, unit: str, kept: Kept, place: tuple[float, float]) -> None:
    x, y = place
    style = SMALL | {"fontsize": 6.8}
    if kept.kept == 0:
        box(axes, (x, y, CELL), canvas.PAPER, height=BAR, hatched=True)
        axes.text(x, y + BAR + 0.065, "pruned", **style)
        return
    box(axes, (x, y, CELL), canvas.GHOST, height=BAR)
    box(axes, (x, y, CELL * kept.kept / kept.dense), UNITS[unit][1], height=BAR)
    axes.text(x, y + BAR + 0.065, str(kept.kept), **style | {"color": canvas.INK})
    if kept.rate is not None:
        axes.text(x + CELL, y + BAR + 0.065, f"{kept.rate:.2f}", ha="right", **style)


def _rows(model: Model) -> list[tuple[object, ...]]:
    return [
        (model.name, layer.block, layer.gate_network, unit, kept.branch, kept.kept, kept.dense, kept.rate)
        for layer in model.layers
        for unit, kept in layer.branches
    ]
