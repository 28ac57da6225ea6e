"""What charts with axes share: title, unit, grid, and labels beside the plot that can't overlap."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import cycle
from typing import TYPE_CHECKING, Any

from usdcore.report import canvas, text

if TYPE_CHECKING:
    from collections.abc import Sequence

    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

LEFT, TOP, BOTTOM = 0.68, 0.86, 0.95
"""Inches around the plot: its title stands above it, its legend below its axis."""
LABELS = 2.9
"""Inches to the right of the plot, where its labels stand."""
LINE_HEIGHT = 0.17
"""Inches from one label to the next."""
LABEL_SIZE = 8

# Of middle lightness: each has a contrast of 3 and more to white paper and to the dark one. They are told apart without
# colour as well, by the marker and by the label at the end of its line; five and six have no common factor.
COLOURS = (canvas.ATTENTION, canvas.FEED_FORWARD, "#2a8a6b", "#b8487f", "#767e89")
MARKERS = ("o", "s", "^", "D", "v", "P")


@dataclass(frozen=True)
class Label:
    """What stands beside the plot for the mark at `x`, `y` (in the axes' units)."""

    x: float
    y: float
    name: str
    number: str
    colour: str
    marker: str
    is_hollow: bool = False


@dataclass(frozen=True)
class Frame:
    """The plot, and behind it axes in inches over the whole figure, y downwards, for everything else."""

    figure: Figure
    plot: Axes
    ink: Axes

    def label(self, labels: Sequence[Label]) -> None:
        """Write labels in a column right of the plot, each with a line to its mark; the limits must be final."""
        width, height = self.figure.get_size_inches()
        box = self.plot.get_position()
        places = [self._inches(label.x, label.y) for label in labels]
        rows = spread([y for _, y in places], LINE_HEIGHT, (TOP - 0.1, height - 0.3))
        right = box.x1 * width
        for label, (x, y), row in zip(labels, places, rows, strict=True):
            self.ink.plot([x, right + 0.05, right + 0.3], [y, y, row], color=label.colour, linewidth=0.6, alpha=0.55)
            face = canvas.PAPER if label.is_hollow else label.colour
            self.ink.plot([right + 0.38], [row], label.marker, color=label.colour, markerfacecolor=face, markersize=5)
            style: dict[str, Any] = {"fontsize": LABEL_SIZE, "va": "center"}
            self.ink.text(right + 0.48, row, label.number, color=canvas.MUTED, **style)
            self.ink.text(right + 1.06, row, text.shorten(label.name, 27), color=canvas.INK, **style)

    def legend(self, columns: int) -> None:
        """What the signs mean, under the axis, where it hides nothing."""
        height = self.figure.get_size_inches()[1] * self.plot.get_position().height
        self.plot.legend(
            loc="upper left",
            bbox_to_anchor=(-0.02, -0.48 / height),
            ncols=columns,
            frameon=False,
            fontsize=7.5,
            handletextpad=0.4,
            columnspacing=1.2,
            borderpad=0,
        )

    def _inches(self, x: float, y: float) -> tuple[float, float]:
        across, up = self.plot.transData.transform((x, y)) / self.figure.dpi
        return float(across), float(self.figure.get_size_inches()[1] - up)


def frame(figure: Figure, title: str, line: str, *, labels: bool = False) -> Frame:
    """Axes under a title with a line below it; `labels`: with room for a column of labels."""
    width, height = figure.get_size_inches()
    ink = figure.add_axes((0, 0, 1, 1), zorder=-1)
    ink.set_xlim(0, width)
    ink.set_ylim(height, 0)
    ink.set_axis_off()
    canvas.heading(ink, (LEFT, 0.4), title, width - LEFT - 0.22, bold=True)
    canvas.heading(ink, (LEFT, 0.64), line, width - LEFT - 0.22)
    room = width - LEFT - (LABELS if labels else 0.22)
    plot = figure.add_axes((LEFT / width, BOTTOM / height, room / width, 1 - (TOP + BOTTOM) / height))
    plot.patch.set_visible(False)  # what is drawn in inches lies behind the plot, and shows through
    return Frame(figure, plot, ink)


def height_for(num_labels: int) -> float:
    """Inches for a figure with so many labels."""
    return max(4.4, TOP + LINE_HEIGHT * num_labels + 0.5)


def spread(wanted: Sequence[float], gap: float, room: tuple[float, float]) -> list[float]:
    """Places as near to those wanted as leaves `gap` between any two, within `room` while there is enough of it.

    Least squares under the constraint (pool adjacent violators): neighbours that are too close move apart together.
    """
    order = sorted(range(len(wanted)), key=lambda i: wanted[i])
    pools: list[list[float]] = []
    for rank, i in enumerate(order):
        pools.append([wanted[i] - rank * gap, 1])
        while len(pools) > 1 and pools[-2][0] > pools[-1][0]:
            value, count = pools.pop()
            before, more = pools.pop()
            pools.append([(value * count + before * more) / (count + more), count + more])
    low, high = room[0], max(room[0], room[1] - (len(wanted) - 1) * gap)
    flat = [min(max(value, low), high) for value, count in pools for _ in range(int(count))]
    places = [0.0] * len(wanted)
    for rank, i in enumerate(order):
        places[i] = flat[rank] + rank * gap
    return places


def styles(count: int) -> list[tuple[str, str]]:
    """A colour and a marker for each of `count` lines; the first thirty differ."""
    pairs = zip(cycle(COLOURS), cycle(MARKERS), strict=False)
    return [pair for pair, _ in zip(pairs, range(count), strict=False)]


def in_units(largest: float) -> tuple[float, str]:
    """What counts are divided by on an axis, and the prefix that says so."""
    return next(((size, prefix) for size, prefix in ((1e9, "G"), (1e6, "M"), (1e3, "k")) if largest >= size), (1.0, ""))


def macs_label(prefix: str) -> str:
    """What stands at the axis of executed MACs."""
    return f"executed {prefix}MACs per image"


def finish(axes: Axes) -> None:
    """Grid and spines of every chart."""
    axes.grid(visible=True, color=canvas.GHOST, linewidth=0.8)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    axes.tick_params(length=0)
    axes.ticklabel_format(axis="y", useOffset=False, style="plain")
