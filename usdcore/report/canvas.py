"""What every figure shares: matplotlib without global state, one palette, and SVG that follows the page's theme."""

from __future__ import annotations

import contextlib
import csv
import io
import re
import warnings
from html import escape
from typing import TYPE_CHECKING, Any

from usdcore.errors import UsdcoreError
from usdcore.files import write_atomic
from usdcore.report.text import shorten

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence
    from pathlib import Path

    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

INK = "#1f2328"
MUTED = "#59636e"
GHOST = "#e7eaee"
LINE = "#c5ccd4"
PAPER = "#ffffff"
ATTENTION = "#3a6ea8"
FEED_FORWARD = "#b0621c"
ACCENT = "#7a4fb5"

# These follow the page's theme when a figure stands inside it; all other colours carry data and stay as they are.
THEME = {INK: "--ink", MUTED: "--muted", GHOST: "--ghost", LINE: "--line", PAPER: "--paper", ACCENT: "--accent"}

_STYLE: Any = {
    "font.family": "DejaVu Sans",
    "font.size": 8.5,
    "text.usetex": False,
    "text.color": INK,
    # A dollar sign in a user's name is a dollar sign.
    "text.parse_math": False,
    "svg.fonttype": "none",
    "axes.edgecolor": LINE,
    "axes.labelcolor": MUTED,
    "axes.facecolor": PAPER,
    "figure.facecolor": PAPER,
    "savefig.facecolor": PAPER,
    "savefig.bbox": None,
    "xtick.color": MUTED,
    "ytick.color": MUTED,
    "hatch.linewidth": 0.6,
}


class PlotsMissingError(UsdcoreError):
    """matplotlib is not installed; a report does without figures."""


@contextlib.contextmanager
def new_figure(width: float, height: float, salt: str) -> Iterator[Figure]:
    """An empty figure of `width` x `height` inches, without pyplot or a display; `salt` keeps the SVG's ids apart.

    Raises:
        PlotsMissingError: matplotlib is not installed.
    """
    try:
        import matplotlib
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError:
        raise PlotsMissingError(
            "figures were skipped: matplotlib is not installed; "
            "`pip install 'usdcore[plots]'`, then `usdcore report RUN`"
        ) from None
    with matplotlib.rc_context(_STYLE | {"svg.hashsalt": salt}), warnings.catch_warnings():
        # Names in scripts that the font lacks show as boxes; that is no reason to print a warning for each letter.
        warnings.filterwarnings("ignore", message="Glyph .* missing from")
        figure = Figure(figsize=(width, height))
        FigureCanvasAgg(figure)
        yield figure


def heading(axes: Axes, place: tuple[float, float], line: str, room: float, bold: bool = False) -> None:
    """Write a title (`bold`) or the line under it at `place`, shortened and made small enough for `room` inches."""
    size, em = (11.5, 0.68) if bold else (8, 0.57)
    # Below two thirds of the size nobody reads it: what does not fit then is cut.
    line = shorten(line, int(72 * room / (em * size * 0.67)))
    size = min(size, 72 * room / (em * len(line)))
    axes.text(*place, line, fontsize=size, fontweight="bold" if bold else "normal", color=INK if bold else MUTED)


def save(figure: Figure, stem: Path, header: Sequence[str], rows: Iterable[Sequence[object]]) -> tuple[Path, ...]:
    """Write `stem`.svg, `stem`.png and `stem`.csv (the numbers drawn); must run inside `new_figure`."""
    svg, png = io.BytesIO(), io.BytesIO()
    figure.savefig(svg, format="svg", metadata={"Date": None, "Creator": None, "Format": None, "Type": None})
    figure.savefig(png, format="png", dpi=160)
    table = io.StringIO()
    writer = csv.writer(table, lineterminator="\n")
    writer.writerow(header)
    writer.writerows(["" if value is None else value for value in row] for row in rows)
    contents = {".svg": svg.getvalue(), ".png": png.getvalue(), ".csv": table.getvalue().encode()}
    return tuple(write_atomic(stem.with_name(stem.name + suffix), content) for suffix, content in contents.items())


def inline_svg(svg: str, prefix: str, title: str, description: str) -> str:
    """A figure's SVG made ready to stand inside an HTML page.

    Its ids get `prefix` (two figures share a page), theme colours become CSS variables with the printed colour as
    fallback, `title` and `description` are what a screen reader says, and the page's style gets its width as `--width`.
    """
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    # Only inside tags: the text between them is the user's.
    svg = re.sub(r"<[a-zA-Z][^>]*>", lambda match: _themed_tag(match[0], prefix), svg)
    names = f'<title id="{prefix}-title">{escape(title)}</title><desc id="{prefix}-desc">{escape(description)}</desc>'
    width = re.search(r'<svg[^>]*\swidth="([0-9.]+pt)"', svg)
    style = f' style="--width: {width[1]}"' if width else ""
    labelled = f'<svg role="img" aria-labelledby="{prefix}-title {prefix}-desc"{style}'
    return re.sub(r"<svg([^>]*)>", lambda match: f"{labelled}{match[1]}>{names}", svg, count=1)


def _themed_tag(tag: str, prefix: str) -> str:
    tag = re.sub(r'\bid="', f'id="{prefix}-', tag)
    tag = re.sub(r'(href="#|url\(#)', rf"\g<1>{prefix}-", tag)
    # Variables are certain to work in a style, not in a presentation attribute (which only a hatch's background has).
    tag = re.sub(r'\bfill="(#[0-9a-f]{6})"', r'style="fill: \1"', tag)
    for colour, variable in THEME.items():
        tag = tag.replace(colour, f"var({variable}, {colour})")
    return tag
