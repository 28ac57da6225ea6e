"""`usdcore report`: make a run's report again from its result."""

from __future__ import annotations

import json
from pathlib import Path

import click


@click.command("report")
@click.argument("run", type=click.Path(path_type=Path))
@click.option("--json", "as_json", is_flag=True, help="Print the table and the written files as JSON.")
def command(run: Path, as_json: bool) -> None:
    """Make RUN's report again from its result.json, and print the before/after table.

    RUN is the folder of a finished run.
    """
    # jinja2, pydantic and rich are for this command only; `usdcore --help` must not wait for them.
    from usdcore.report.page import write_report
    from usdcore.report.table import headline
    from usdcore.report.terminal import print_result

    report = write_report(run)
    if not as_json:
        print_result(run, report.notes)
        return
    table = headline(report.result)
    answer = {
        "run": str(run),
        "budget_met": report.result.budget.met,
        "table": table.as_records(),
        "caption": table.caption,
        "files": [str(path) for path in report.files],
        "notes": list(report.notes),
    }
    click.echo(json.dumps(answer, indent=2))
