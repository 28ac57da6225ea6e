"""Numbers and names as text: one place decides digits and units, so that no two tables disagree."""

from __future__ import annotations

import re

NOT_RUN = "not run"
NOT_APPLICABLE = "-"


def one_line(text: str) -> str:
    """`text` on one line, without characters that can't be shown (control, direction and escape characters)."""
    return " ".join("".join(c if c.isprintable() else " " for c in text).split())


def shorten(text: str, length: int) -> str:
    """`text`, or its beginning and an ellipsis where it is longer than `length` characters."""
    return text if len(text) <= length else text[: length - 1].rstrip() + "…"


def count(value: float | None) -> str:
    """A count with an SI prefix and three or four digits: 4598882304 is '4.599 G'."""
    if value is None:
        return NOT_RUN
    for size, prefix in ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")):
        # 999.96e6 would print as '1000.0 M': the next prefix takes over where rounding reaches it.
        if abs(value) >= size * 0.99995:
            scaled = value / size
            return f"{scaled:.{3 if abs(scaled) < 10 else 2 if abs(scaled) < 100 else 1}f} {prefix}"
    return f"{value:.0f}" if float(value).is_integer() else f"{value:.1f}"


def size(num_bytes: int | None) -> str:
    """A file's size in decimal units."""
    if num_bytes is None:
        return NOT_RUN
    return f"{num_bytes} B" if num_bytes < 1000 else f"{count(num_bytes)}B"


def percent(fraction: float | None) -> str:
    """A fraction as percent with one digit, 0.503 is '50.3 %'; a tiny one keeps two that count."""
    if fraction is None:
        return NOT_RUN
    value = 100 * fraction
    return f"{value:.2g} %" if 0 < abs(value) < 0.095 else f"{value:.1f} %"


def points(fraction: float) -> str:
    """The size of a difference of two fractions, in percentage points; small ones keep two digits."""
    value = abs(100 * fraction)
    return f"{value:.1f} points" if value >= 0.995 else f"{value:.2f} points"


def top1(value: float | None) -> str:
    """Top-1 accuracy, given in percent."""
    return NOT_RUN if value is None else f"{value:.2f} %"


def number(value: float | None) -> str:
    """A plain number without needless zeros."""
    return NOT_RUN if value is None else f"{value:g}"


def milliseconds(value: float) -> str:
    """A time in milliseconds with three significant digits or more."""
    return f"{value:.{3 if value < 1 else 2 if value < 10 else 1 if value < 1000 else 0}f} ms"


def duration(seconds: float) -> str:
    """Seconds as the two largest of hours, minutes, seconds."""
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest} s"
    return f"{minutes // 60} h {minutes % 60} min"


def of_dense(value: float | None, dense: float | None) -> str:
    """A count and, in parentheses, its share of the dense model's."""
    if value is None or not dense:
        return count(value)
    return f"{count(value)} ({percent(value / dense)})"


_MARKDOWN = re.compile(r"[\\`*\[\]|~]|(?<![A-Za-z0-9])_|_(?![A-Za-z0-9])")
_ENTITIES = {"&": "&amp;", "<": "&lt;", ">": "&gt;"}


def escape_markdown(text: str) -> str:
    """`text` so that Markdown shows it literally on one line; underscores inside words stay readable."""
    text = re.sub(r"[&<>]", lambda match: _ENTITIES[match[0]], one_line(text))
    text = _MARKDOWN.sub(lambda match: "\\" + match[0], text)
    # A line that begins with one of these would become a heading or a list.
    return re.sub(r"^([#+-])(?=\s|#)", r"\\\1", text)
