"""The two kinds of error: `UsdcoreError` is the user's to fix and prints as one message; anything else is a bug."""

from __future__ import annotations

import difflib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable


class UsdcoreError(Exception):
    """A mistake the user can mend: the text says where, what, and what to do."""


class BudgetMissed(UsdcoreError):
    """The run finished but a promise (the budget) was not kept; the command line exits with 3."""


def nearest(name: str, options: Iterable[str]) -> str:
    """A hint at the end of a message: the closest valid names to `name`, or all of them when none is close."""
    names = sorted(options)
    close = difflib.get_close_matches(name, names, n=3, cutoff=0.6)
    if close:
        return f"did you mean {' or '.join(repr(c) for c in close)}?"
    if not names:
        return "none is installed"
    shown = ", ".join(names[:12])
    return f"valid: {shown}" if len(names) <= 12 else f"none is similar; valid are {shown} and {len(names) - 12} more"
