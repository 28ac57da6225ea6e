"""Everything that was tried on the files usdcore reads and writes, and what must come of it: one table for the tests
and for docs/safety.md, which `python -m tests.attacks` writes.
"""

from __future__ import annotations

from . import disk, model, run, tables, tokens, weights
from .table import REFUSED, Attack

HOSTILE = tuple(a for part in (model, tokens, weights, run, tables) for table in part.TABLES for a in table.attacks)
LOST = tuple(a for table in disk.TABLES for a in table.attacks)

__all__ = ["HOSTILE", "LOST", "REFUSED", "Attack"]
