"""`usdcore plugins`: what is installed, what each plugin can be told, and the start of a new one. Imports no torch."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from usdcore.cli.output import print_json, print_table
from usdcore.errors import UsdcoreError, nearest

if TYPE_CHECKING:
    from usdcore.hooks import PluginRecord, Registration


@click.group("plugins")
def command() -> None:
    """List what is installed, show one plugin's options, write them up, or start a new plugin."""


@command.command("list")
@click.option("--json", "as_json", is_flag=True, help="Print a JSON list.")
def list_plugins(as_json: bool) -> None:
    """Everything that plugins registered, and every plugin that failed, with the reason.

    The environment variable USDCORE_PLUGINS names the distributions whose plugins load beside usdcore's own,
    separated by commas; empty: usdcore's own only.
    """
    from usdcore.hooks import registry

    records = registry().records()
    rows = [row for record in records for row in _rows(record)]
    if as_json:
        print_json(rows)
        return
    columns = ("name", "kind", "distribution", "version", "state", "summary")
    print_table(columns, [[row[column] for column in columns] for row in rows])
    for record in records:
        if record.state == "failed":
            click.echo(f"\n{record.name} of {record.distribution} failed: {record.error}")


@command.command("show")
@click.argument("name")
@click.option("--json", "as_json", is_flag=True, help="Print a JSON list, one entry for each kind that has the name.")
def show(name: str, as_json: bool) -> None:
    """The options of everything called NAME: type, default, whether a later phase may change it, what it means."""
    from usdcore.hooks import registry

    records = registry().records()
    found = [_details(record, entry) for record in records for entry in record.entries if entry.name == name]
    if not found:
        for record in records:
            if record.state == "failed" and record.name == name:
                msg = f"plugin {name!r} of {record.distribution} {record.version} failed: {record.error}"
                raise UsdcoreError(msg)
        names = {entry.name for record in records for entry in record.entries}
        msg = f"nothing is registered as {name!r}; {nearest(name, names)}"
        raise UsdcoreError(msg)
    if as_json:
        print_json(found)
        return
    for number, details in enumerate(found):
        click.echo("\n" * bool(number), nl=False)
        _print_details(details)


@command.command("new")
@click.argument("name")
def new(name: str) -> None:
    """Write a working package with a strategy called NAME into ./NAME: options, method, tests, README.

    It passes usdcore's conformance kit as it is. NAME has small letters, digits and hyphens.
    """
    from usdcore.scaffold import write_package

    for path in write_package(name, Path()):
        click.echo(path)
    click.echo(f'\nnext: pip install -e "./{name}[dev]" && pytest {name}')


@command.command("docs")
@click.option("--out", default="docs/methods", show_default=True, help="The folder of the pages.")
@click.option("--distribution", default="usdcore", show_default=True, help="Whose plugins.")
def docs(out: str, distribution: str) -> None:
    """Write a page for each plugin of a distribution, from what its options say of themselves, and a list of them."""
    from usdcore.cli.pages import write_pages

    for path in write_pages(Path(out), distribution):
        click.echo(path)


def _rows(record: PluginRecord) -> list[dict[str, Any]]:
    origin = {
        "distribution": record.distribution,
        "version": record.version,
        "state": record.state,
        "error": record.error,
        "plugin": record.name,
    }
    if record.state == "failed":
        return [{"name": record.name, "kind": "plugin", **origin, "summary": ""}]
    return [{"name": e.name, "kind": e.kind, **origin, "summary": e.summary} for e in record.entries]


def _details(record: PluginRecord, entry: Registration) -> dict[str, Any]:
    from usdcore.hooks import registry
    from usdcore.recipe.options import describe_options

    config = registry().config(entry.kind, entry.name)
    return {
        "name": entry.name,
        "kind": entry.kind,
        "summary": entry.summary,
        "description": " ".join((entry.config.__doc__ or "").split()),
        "plugin": record.name,
        "distribution": record.distribution,
        "version": record.version,
        "implementation": entry.implementation,
        "options": describe_options(config),
    }


def _print_details(details: dict[str, Any]) -> None:
    from usdcore.recipe.emit import flow

    click.echo(f"{details['name']} ({details['kind']}): {details['summary']}")
    if details["description"]:
        click.echo(details["description"])
    click.echo(f"from {details['distribution']} {details['version']}, {details['implementation']}\n")
    columns = ("option", "type", "default", "mutable", "source", "description")
    rows = [
        [
            option["name"],
            option["type"],
            "required" if option["required"] else flow(option["default"]),
            "yes" if option["mutable"] else "",
            option["source"],
            option["description"],
        ]
        for option in details["options"]
    ]
    print_table(columns, rows)
