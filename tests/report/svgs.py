"""What stands where in a drawn figure: the box of each text, measured with the font that it was drawn with."""

from __future__ import annotations

import re
import xml.etree.ElementTree as ET
from dataclasses import dataclass
from pathlib import Path

from matplotlib.backends.backend_agg import RendererAgg
from matplotlib.font_manager import FontProperties

_TEXT = "{http://www.w3.org/2000/svg}text"


@dataclass(frozen=True)
class Words:
    """One text of an SVG; y grows downwards, units are those of the SVG."""

    text: str
    left: float
    right: float
    top: float
    bottom: float

    def hits(self, other: Words) -> bool:
        return (
            self.left < other.right and other.left < self.right and self.top < other.bottom and other.top < self.bottom
        )


def texts(path: Path) -> list[Words]:
    """Every text that is not turned."""
    found, measure = [], RendererAgg(1, 1, 72)
    for element in ET.parse(path).getroot().iter(_TEXT):
        style, turned = element.get("style", ""), re.match(r"rotate\((-?[\d.]+)", element.get("transform", ""))
        words = "".join(element.itertext()).strip()
        if not words or (turned and float(turned[1]) % 360):
            continue
        (size,) = re.findall(r"font-size: ([\d.]+)px", style)
        weight = "bold" if "font-weight: 700" in style else "normal"
        font = FontProperties(family="DejaVu Sans", weight=weight, size=float(size))
        width, _, _ = measure.get_text_width_height_descent(words, font, ismath=False)
        x, y = float(element.get("x", 0)), float(element.get("y", 0))
        anchor = (re.findall(r"text-anchor: (\w+)", style) or ["start"])[0]
        left = x - width * {"start": 0, "middle": 0.5, "end": 1}[anchor]
        found.append(Words(words, left, left + width, y - 0.75 * float(size), y + 0.2 * float(size)))
    return found


def collisions(path: Path) -> list[tuple[str, str]]:
    """Pairs of texts on each other."""
    found = texts(path)
    return [(one.text, other.text) for i, one in enumerate(found) for other in found[:i] if one.hits(other)]


def beyond(path: Path) -> list[str]:
    """Texts that reach over the figure's edge."""
    width, height = (float(value) for value in ET.parse(path).getroot().get("viewBox", "").split()[2:])
    edge = Words("", 0, width, 0, height)
    return [
        one.text
        for one in texts(path)
        if one.left < edge.left or one.right > edge.right or one.top < edge.top or one.bottom > edge.bottom
    ]
