"""A table as Markdown, JSON and one HTML page that needs no other file."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from usdcore.ablate.pictures import draw, picture_sections, pictures
from usdcore.ablate.sections import progress, sections
from usdcore.ablate.verdicts import judge
from usdcore.files import write_atomic
from usdcore.recipe import recipe_sha256
from usdcore.report.page import html_environment, markdown_environment

if TYPE_CHECKING:
    from pathlib import Path

    from usdcore.ablate.cells import RowCells
    from usdcore.ablate.exact import Exact
    from usdcore.ablate.jobs import Job
    from usdcore.ablate.loading import Table
    from usdcore.report.result import Result

FORMAT = 1
PACKAGE = "usdcore.ablate"


@dataclass(frozen=True)
class Pages:
    """What was written, and its text."""

    files: tuple[Path, ...]
    markdown: str
    json: dict[str, Any]


def write_pages(table: Table, rows: list[RowCells], exact: Exact, folder: Path) -> Pages:
    """Write the table, and the figure and plan of each printed structure. Errors: a folder that can't be written."""
    stem = f"{table.ablation.name}-{table.scale_name}"
    found = pictures(table, rows, exact)
    drawn, notes = draw(found, folder, stem)
    page = {
        "table": table,
        "progress": progress(table, rows),
        "sections": sections(table, rows, picture_sections(found)),
        "figures": drawn,
        "notes": notes,
    }
    markdown = markdown_environment(PACKAGE).get_template("ablation.md.j2").render(page | {"stem": stem})
    html = html_environment(PACKAGE).get_template("ablation.html.j2").render(page)
    data = as_json(table, rows)
    files = (
        write_atomic(folder / f"{stem}.md", markdown.encode()),
        write_atomic(folder / f"{stem}.json", (json.dumps(data, indent=1, ensure_ascii=False) + "\n").encode()),
        write_atomic(folder / f"{stem}.html", html.encode()),
    )
    return Pages(files, markdown, data)


def as_json(table: Table, rows: list[RowCells]) -> dict[str, Any]:
    """The table for programs: shares are fractions, top-1 in percent, differences as they are printed."""
    return {
        "format": FORMAT,
        "ablation": table.ablation.name,
        "title": table.ablation.title,
        "scale": table.scale_name,
        "data": table.scale.data,
        "is_papers": table.scale.is_papers,
        "paper": table.ablation.paper.model_dump(),
        "seeds": list(table.seeds),
        "set": list(table.overrides),
        "columns": [{"key": c.column.key, "title": c.column.title} for c in rows[0].cells] if rows else [],
        "rows": [
            {
                "name": row.row.name,
                "model": row.row.model,
                "missing": row.missing,
                "budget_missed": row.is_over_budget,
                "cells": {cell.column.key: cell.as_json() for cell in row.cells},
                "runs": [_run(job, result) for job, result in row.runs],
            }
            for row in rows
        ],
        "claims": [verdict.as_json() for verdict in judge(table.ablation.claims, rows)],
    }


def _run(job: Job, result: Result | None) -> dict[str, Any]:
    """A run with the conditions under which its numbers hold."""
    return {
        "row": job.name,
        "seed": job.seed,
        "state": job.state,
        "folder": str(job.folder),
        "recipe_sha256": recipe_sha256(job.recipe),
        "starts_from": None if job.stem is None else str(job.stem.folder),
        "budget": None if result is None else result.budget.model_dump(mode="json"),
        "provenance": None if result is None else result.provenance.model_dump(mode="json"),
    }
