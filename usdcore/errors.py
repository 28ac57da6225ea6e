"""The two kinds of error: `UsdcoreError` is the user's to fix and prints as one message; anything else is a bug."""

from __future__ import annotations

import difflib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable


_LONGEST_NAME = 200
"""Characters; whatever is longer resembles no name."""


class UsdcoreError(Exception):
    """A mistake the user can mend: the text says where, what, and what to do.

    It repeats names from files, so what a terminal would obey in them is shown as its escape.
    """

    def __str__(self) -> str:
        return "\n".join(printable(line) for line in super().__str__().split("\n"))


class BudgetMissed(UsdcoreError):
    """The run finished but a promise (the budget) was not kept; the command line exits with 3."""


def printable(text: str) -> str:
    """`text` on one line of a terminal: what is no character to look at (control codes, line breaks) as its escape."""
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def brief(text: str, longest: int = 60) -> str:
    """`text` as a message repeats it: printable, and cut where it is longer than `longest` characters."""
    return printable(text if len(text) <= longest else f"{text[:longest]}...")


def nearest(name: str, options: Iterable[str]) -> str:
    """A hint at the end of a message: the closest valid names to `name`, or all of them when none is close."""
    names = sorted(options)
    close = difflib.get_close_matches(name[:_LONGEST_NAME], names, n=3, cutoff=0.6)
    if close:
        return f"did you mean {' or '.join(repr(c) for c in close)}?"
    if not names:
        return "none is installed"
    shown = ", ".join(names[:12])
    return f"valid: {shown}" if len(names) <= 12 else f"none is similar; valid are {shown} and {len(names) - 12} more"
