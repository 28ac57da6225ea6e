"""`usdcore ablate`: a table of runs beside a paper's. Listing one and refusing a bad file import no torch."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from usdcore.cli.output import print_json, print_table
from usdcore.errors import BudgetMissed, UsdcoreError, nearest

if TYPE_CHECKING:
    from usdcore.ablate.jobs import Job, Jobs
    from usdcore.ablate.loading import Table

OUT = Path("runs/ablations")


class _Shard(click.ParamType):  # type: ignore[type-arg]  # generic in newer versions of click only
    """``i/n``, both from 1."""

    name = "i/n"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[int, int]:
        number, slash, count = str(value).partition("/")
        if not slash or not (number.isdecimal() and count.isdecimal()) or not 1 <= int(number) <= int(count) <= 10_000:
            self.fail(f"{value!r} is no part of a whole; write 1/4 for the first of four", param, ctx)
        return int(number), int(count)


@click.command()
@click.argument("ablation", type=click.Path(path_type=Path))
@click.option("--scale", help="Which of the file's scales; default: its first.")
@click.option(
    "--out", type=click.Path(path_type=Path), default=OUT, show_default=True, help="Where runs and tables go."
)
@click.option("--set", "overrides", multiple=True, metavar="KEY=VALUE", help="Override a value in every row's recipe.")
@click.option("--row", "rows", multiple=True, metavar="NAME", help="Run this row only; may be repeated.")
@click.option("--seed", "seeds", multiple=True, type=int, help="Run this seed only; may be repeated.")
@click.option("--shard", type=_Shard(), help="Run one part of the runs, 1/4 being the first of four.")
@click.option("--list", "is_list", is_flag=True, help="Show what would run and what has a result; run nothing.")
@click.option("--table", "is_table", is_flag=True, help="Print the table of what is there; run nothing.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def command(ablation: Path, scale: str | None, out: Path, overrides: tuple[str, ...], **given: Any) -> None:
    """Run what the file ABLATION has no result for yet, and print its table beside the paper's.

    Give the same command again to go on. Runs lie in OUT/SCALE, the table in OUT/tables.
    """
    from usdcore.ablate.jobs import plan_jobs
    from usdcore.ablate.loading import at_scale, read_ablation

    table = at_scale(read_ablation(ablation), scale, overrides)
    jobs = plan_jobs(table, out / table.scale_name)
    chosen = _chosen(table, jobs, given)
    if given["is_list"]:
        _list(table, jobs, chosen, as_json=given["as_json"])
        return
    _run_and_print(table, jobs, [] if given["is_table"] else chosen, out, as_json=given["as_json"])


def _chosen(table: Table, jobs: Jobs, given: dict[str, Any]) -> list[Job]:
    """The runs that are asked for. Errors: a row or a seed that the table does not have."""
    from usdcore.ablate.jobs import shard

    names = [line.row.name for line in table.lines]
    for name in given["rows"]:
        if name not in names:
            msg = f"--row {name}: there is no such row at scale {table.scale_name}; {nearest(name, names)}"
            raise UsdcoreError(msg)
    for seed in given["seeds"]:
        if seed not in table.seeds:
            msg = f"--seed {seed}: the seeds at scale {table.scale_name} are {', '.join(map(str, table.seeds))}"
            raise UsdcoreError(msg)
    keys = {
        job.key
        for (name, seed), job in jobs.of_row.items()
        if (not given["rows"] or name in given["rows"]) and (not given["seeds"] or seed in given["seeds"])
    }
    part = shard(jobs.all, *given["shard"]) if given["shard"] else jobs.all
    return [job for job in part if job.key in keys]


def _list(table: Table, jobs: Jobs, chosen: list[Job], *, as_json: bool) -> None:
    from usdcore.ablate.listing import listed

    found = listed(table, jobs, chosen)
    if as_json:
        print_json(found)
        return
    columns = ("row", "seed", "state", "here", "folder")
    print_table(columns, [[row[column] for column in columns] for row in found["rows"]])
    click.echo(f"\n{found['left']} of {found['runs']} runs are left; {found['here']} of them would run here")


def _run_and_print(table: Table, jobs: Jobs, chosen: list[Job], out: Path, *, as_json: bool) -> None:
    from usdcore.ablate.cells import collect
    from usdcore.ablate.exact import Exact
    from usdcore.ablate.jobs import plan_jobs
    from usdcore.ablate.page import write_pages

    failed: list[str] = []
    missed: list[str] = []
    if chosen:
        from usdcore.ablate.execute import execute

        outcome = execute(chosen, lambda line: click.echo(line, err=True))
        failed, missed = list(outcome.failed.values()), list(outcome.missed.values())
        for line in outcome.elsewhere:
            click.echo(f"left to another process: {line}", err=True)
        jobs = plan_jobs(table, out / table.scale_name)  # a dense row shows what has been finished
    exact = Exact()
    rows = collect(table, jobs, exact)
    pages = write_pages(table, rows, exact, out / "tables")
    if as_json:
        print_json(pages.json)
    else:
        click.echo(pages.markdown)
        click.echo(f"page: {pages.files[-1]}", err=True)
    if failed:
        msg = f"{len(failed)} runs could not be made:\n" + "\n".join(dict.fromkeys(failed))
        raise UsdcoreError(msg)
    missed += [f"{row.row.name}: see its runs" for row in rows if row.is_over_budget]
    if missed and chosen:
        raise BudgetMissed("\n".join(missed))
