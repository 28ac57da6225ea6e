"""What commands print: tables for people, JSON for programs."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from collections.abc import Sequence

_GAP = "  "


def print_json(value: Any) -> None:
    """JSON with sorted-as-given keys and two spaces of indentation."""
    click.echo(json.dumps(value, indent=2, ensure_ascii=False))


def print_table(columns: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
    """Columns of text, as wide as they need to be; nothing is cut or wrapped, so that output can be searched."""
    texts = [[str(cell) for cell in row] for row in rows]
    widths = [max(len(row[i]) for row in [list(columns), *texts]) for i in range(len(columns))]
    for row in (list(columns), ["-" * width for width in widths], *texts):
        click.echo(_GAP.join(f"{cell:<{width}}" for cell, width in zip(row, widths, strict=True)).rstrip())
