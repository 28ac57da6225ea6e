"""The report of a run: `report.md`, a self-contained `report.html`, and the figures, all from `result.json` alone."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import jinja2
from markupsafe import Markup

from usdcore.errors import UsdcoreError
from usdcore.files import write_atomic
from usdcore.report import canvas, words
from usdcore.report.figure import batches_figure, dial_figure, structure_figure
from usdcore.report.result import Result, read_result
from usdcore.report.sections import sections
from usdcore.report.table import Table, to_markdown
from usdcore.report.text import escape_markdown

if TYPE_CHECKING:
    from pathlib import Path

FIGURES = "figures"
HOME = "usdcore.report"


@dataclass(frozen=True)
class Report:
    """What was written, and why something was not."""

    result: Result
    files: tuple[Path, ...]
    notes: tuple[str, ...] = ()


def write_report(run_dir: Path) -> Report:
    """Write `report.md`, `report.html` and `figures/` beside `run_dir/result.json`; each file is replaced in one step.

    Without matplotlib the report has no figures, and `notes` says so.

    Raises:
        UsdcoreError: the run has no result yet, or one that can't be read.
    """
    result = read_result(run_dir)
    if (run_dir / FIGURES).is_symlink():
        msg = f"{run_dir / FIGURES}: a link to another folder, which a report never writes to; remove it"
        raise UsdcoreError(msg)
    figures, notes = _write_figures(result, run_dir)
    stems = {path.stem: path for path in figures if path.suffix == ".svg"}
    page = {
        "result": result,
        "verdict": words.verdict(result),
        "sections": sections(result),
        "figures": stems,
        "notes": notes,
    }
    files = (
        write_atomic(run_dir / "report.md", markdown_environment().get_template("report.md.j2").render(page).encode()),
        write_atomic(run_dir / "report.html", html_environment().get_template("report.html.j2").render(page).encode()),
        *figures,
    )
    return Report(result, files, notes)


def _write_figures(result: Result, run_dir: Path) -> tuple[tuple[Path, ...], tuple[str, ...]]:
    try:
        drawn = structure_figure(result, run_dir / FIGURES / "structure") if result.structure else ()
        over_batches = batches_figure(result, run_dir / FIGURES / "batches")
        return (*drawn, *over_batches, *dial_figure(result, run_dir / FIGURES / "dial")), ()
    except canvas.PlotsMissingError as missing:
        return (), (str(missing),)


def html_environment(package: str = HOME) -> jinja2.Environment:
    """For pages whose templates lie in `package`, or here: values are escaped, `inline_svg` puts a figure in."""
    environment = _environment(package, autoescape=True)
    environment.filters["inline_svg"] = _inline_svg
    return environment


def markdown_environment(package: str = HOME) -> jinja2.Environment:
    """The same for Markdown: values are escaped, `table` makes a table of a `Table`."""
    # HTML's escapes are not Markdown's: each printed value is escaped here instead, unless a filter made Markdown.
    environment = _environment(package, autoescape=False, finalize=_markdown_value)
    environment.filters["table"] = _markdown_table
    return environment


def _environment(package: str, **options: Any) -> jinja2.Environment:
    return jinja2.Environment(
        loader=jinja2.ChoiceLoader([jinja2.PackageLoader(name) for name in dict.fromkeys((package, HOME))]),
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
        **options,
    )


def _markdown_value(value: object) -> str:
    return value if isinstance(value, Markup) else escape_markdown(str(value))


def _markdown_table(table: Table) -> Markup:
    return Markup(to_markdown(table))


def _inline_svg(path: Path, title: str, words: str) -> Markup:
    return Markup(canvas.inline_svg(path.read_text(encoding="utf-8"), path.stem, title, words))
