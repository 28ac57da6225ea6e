"""Draws what is kept of each layer, in inches: every block has one row for its attention and one for its FFN."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from usdcore.report import canvas, text
from usdcore.report.result import KeptAttention

if TYPE_CHECKING:
    from collections.abc import Sequence

    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from usdcore.report.result import Kept, Layer

ROW = 0.205
BAR = 0.165
GAP = 0.12
HEAD = 1.12
FOOT = 0.62

NAME_X = 0.3
UNIT_X = 2.42
BAR_X = 2.55
BAR_WIDTH = 4.35
RATE_X = 7.1
RATE_WIDTH = 0.72

UNITS = {"MHSA": ("heads", canvas.ATTENTION), "FFN": ("hidden", canvas.FEED_FORWARD)}

# Pale to deep violet. A chip does not follow the page's theme, so neither may its text: hence two colours of its own.
RAMP = ("#efe9f7", "#5b2f9b")
ON_PALE, ON_DEEP = "#241b33", "#fefefe"

HATCH = "//////"
SMALL: dict[str, Any] = {"fontsize": 7.5, "color": canvas.MUTED, "va": "center"}


class StructureDrawing:
    """One figure; `width` and `height` are in inches and grow with the number of branches. `line`: under the title."""

    def __init__(self, model: str, layers: Sequence[Layer], line: str) -> None:
        self.model, self.layers, self.line = model, layers, line
        self.gated = any(kept.rate is not None for layer in layers for _, kept in layer.branches)
        self.width = (RATE_X + RATE_WIDTH if self.gated else BAR_X + BAR_WIDTH) + 0.28
        self.height = HEAD + sum(_height(layer) for layer in layers) + FOOT

    def draw(self, figure: Figure) -> None:
        """Draw everything on one set of axes in inches, y downwards."""
        axes = figure.add_axes((0, 0, 1, 1))
        axes.set_xlim(0, self.width)
        axes.set_ylim(self.height, 0)
        axes.set_axis_off()
        self._head(axes)
        y = HEAD
        for layer in self.layers:
            self._layer(axes, layer, y)
            y += _height(layer)
        self._foot(axes, y + 0.2)

    def _head(self, axes: Axes) -> None:
        title = f"{text.shorten(self.model, 64)}: what is kept of each layer"
        room = self.width - NAME_X - 0.28
        canvas.heading(axes, (NAME_X, 0.43), title, room, bold=True)
        canvas.heading(axes, (NAME_X, 0.66), self.line, room)
        axes.text(NAME_X, HEAD - 0.16, "block / gate network" if self.gated else "block", **SMALL)
        axes.text(BAR_X, HEAD - 0.16, "kept, of the dense model", **SMALL)
        if self.gated:
            axes.text(RATE_X + RATE_WIDTH, HEAD - 0.16, "execution rate", ha="right", **SMALL)
        axes.plot([NAME_X, self.width - 0.28], [HEAD - 0.045] * 2, color=canvas.LINE, linewidth=0.8)

    def _layer(self, axes: Axes, layer: Layer, y: float) -> None:
        middle = y + ROW / 2 + 0.02
        axes.text(NAME_X, middle, text.shorten(layer.block, 26), fontsize=8.5, fontweight="bold", va="center")
        if layer.gate_network is not None:
            name = text.shorten(layer.gate_network, 27)
            axes.text(NAME_X, middle + ROW, name, **SMALL)
        for i, (unit, kept) in enumerate(layer.branches):
            self._branch(axes, unit, kept, y + i * ROW)

    def _branch(self, axes: Axes, unit: str, kept: Kept, y: float) -> None:
        middle = y + ROW / 2 + 0.02
        axes.text(UNIT_X, middle, unit, ha="right", **SMALL)
        noun, colour = UNITS[unit]
        top = middle - BAR / 2
        if kept.kept == 0:
            box(axes, (BAR_X, top, BAR_WIDTH), canvas.PAPER, hatched=True)
            backing = {"boxstyle": "square,pad=0.25", "facecolor": canvas.PAPER, "edgecolor": "none"}
            axes.text(BAR_X + BAR_WIDTH / 2, middle, "pruned", ha="center", bbox=backing, **SMALL)
            return
        length = BAR_WIDTH * kept.kept / kept.dense
        box(axes, (BAR_X, top, BAR_WIDTH), canvas.GHOST)
        box(axes, (BAR_X, top, length), colour)
        label = f"{kept.kept} of {kept.dense} {noun}"
        if isinstance(kept, KeptAttention) and kept.dims:
            label += f", {sum(kept.dims)} value dims"
        inside = length > 1.35
        x, tone = (BAR_X + 0.07, ON_DEEP) if inside else (BAR_X + length + 0.07, canvas.INK)
        axes.text(x, middle, label, fontsize=7.5, color=tone, va="center")
        if self.gated:
            _rate(axes, kept.rate, middle)

    def _foot(self, axes: Axes, y: float) -> None:
        legend(axes, NAME_X, y)
        if self.gated:
            self._rate_scale(axes, y)

    def _rate_scale(self, axes: Axes, y: float) -> None:
        steps = 24
        width = 1.1
        left = RATE_X + RATE_WIDTH - width - 0.12
        for i in range(steps):
            # Each step reaches to the end and the next one covers it: boxes side by side would show seams.
            box(
                axes, (left + width * i / steps, y - 0.06, width * (1 - i / steps)), _ramp(i / (steps - 1)), height=0.12
            )
        axes.text(left - 0.05, y, "rate 0", ha="right", **SMALL)
        axes.text(left + 1.15, y, "1", ha="left", **SMALL)


def _height(layer: Layer) -> float:
    # The gate network's name takes the second row, also where the block has one branch only.
    rows = max(len(layer.branches), 1 if layer.gate_network is None else 2)
    return ROW * rows + GAP


def _rate(axes: Axes, rate: float | None, middle: float) -> None:
    centre = RATE_X + RATE_WIDTH / 2
    if rate is None:
        axes.text(centre, middle, "no gate", ha="center", **SMALL)
        return
    box(axes, (RATE_X, middle - BAR / 2, RATE_WIDTH), _ramp(rate))
    tone = ON_DEEP if rate > 0.5 else ON_PALE
    axes.text(centre, middle, f"{rate:.2f}", fontsize=7.5, color=tone, va="center", ha="center")


def legend(axes: Axes, x: float, y: float) -> None:
    """What the colours of bars mean, from `x` to the right."""
    entries = (
        ("attention heads", canvas.ATTENTION),
        ("FFN hidden neurons", canvas.FEED_FORWARD),
        ("removed", canvas.GHOST),
        ("branch pruned", canvas.PAPER),
    )
    for label, colour in entries:
        box(axes, (x, y - 0.06, 0.2), colour, height=0.12, hatched=colour == canvas.PAPER)
        axes.text(x + 0.27, y, label, **SMALL)
        x += 0.5 + 0.058 * len(label)


def box(
    axes: Axes,
    place: tuple[float, float, float],
    colour: str,
    height: float = BAR,
    hatched: bool = False,
) -> None:
    """A bar from `place` (left, top, width; inches, y downwards)."""
    from matplotlib.patches import Rectangle

    x, y, width = place
    style: dict[str, Any] = {"linewidth": 0}
    if hatched:
        style = {"linewidth": 0.6, "edgecolor": canvas.LINE, "hatch": HATCH}
    axes.add_patch(Rectangle((x, y), width, height, facecolor=colour, **style))


def _ramp(share: float) -> str:
    share = min(max(share, 0.0), 1.0)
    ends = [[int(colour[i : i + 2], 16) for i in (1, 3, 5)] for colour in RAMP]
    return "#" + "".join(f"{round(low + (high - low) * share):02x}" for low, high in zip(*ends, strict=True))
