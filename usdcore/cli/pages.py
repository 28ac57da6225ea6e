"""Pages about plugins in Markdown, from what registration and options say about themselves. Imports no torch."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from usdcore.errors import UsdcoreError, nearest
from usdcore.files import write_atomic
from usdcore.hooks import KINDS, registry
from usdcore.hooks.reference import tag_of
from usdcore.recipe.emit import flow
from usdcore.recipe.options import describe_options

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from usdcore.hooks import Kind, PluginRecord, Registration

_TITLES: dict[Kind, str] = {
    "strategy": "Strategies",
    "gate-network": "Gate networks",
    "split": "Splits",
    "data-source": "Data sources",
    "backbone": "Backbones",
}
_AGAIN = "Made by `usdcore plugins docs`; what to change is the options' own text."
_EXAMPLES: dict[Kind, str] = {
    "strategy": "strategies:\n  - {{{0}}}",
    "gate-network": "strategies:\n  - {{use: usdc-dynamic, gate_network: {{{0}}}}}",
    "split": "strategies:\n  - {{use: usdc-dynamic, split: {{{0}}}}}",
    "data-source": "data: {{{0}}}",
    "backbone": "model: {{{0}}}",
}


def write_pages(folder: Path, distribution: str) -> list[Path]:
    """A page for each name that a distribution registered, and `README.md` with all of them. Returns the files.

    Errors: nothing is registered by it; two kinds that share a name; a folder that can't be written.
    """
    found = list(_entries(distribution))
    if not found:
        owners = {record.distribution for record in registry().records()}
        msg = f"no plugin of the distribution {distribution!r} is registered; {nearest(distribution, owners)}"
        raise UsdcoreError(msg)
    pages = {f"{entry.name}.md": page(record, entry) for record, entry in found}
    if len(pages) < len(found):
        msg = f"{distribution} registers one name for two kinds, and a page can't be of both; rename one"
        raise UsdcoreError(msg)
    pages["README.md"] = contents([entry for _, entry in found], distribution)
    return [write_atomic(folder / name, text.encode()) for name, text in pages.items()]


def _entries(distribution: str) -> Iterator[tuple[PluginRecord, Registration]]:
    for kind in KINDS:
        for name in registry().names(kind):
            record = registry().plugin(kind, name)
            if record.distribution == distribution:
                yield record, registry().entry(kind, name)


def contents(entries: list[Registration], distribution: str) -> str:
    """The list of pages."""
    lines = [f"# Plugins of {distribution}", "", _AGAIN]
    for kind, title in _TITLES.items():
        own = [entry for entry in entries if entry.kind == kind]
        if own:
            lines += ["", f"## {title}", ""]
            lines += [f"* [`{entry.name}`]({entry.name}.md): {entry.summary}" for entry in own]
    return "\n".join(lines) + "\n"


def page(record: PluginRecord, entry: Registration) -> str:
    """One plugin: what it is, how a recipe names it, its options."""
    tag = tag_of(entry.kind) if entry.kind != "backbone" else "name"
    all_options = describe_options(registry().config(entry.kind, entry.name))
    options = [option for option in all_options if option["name"] != tag_of(entry.kind)]
    required = "".join(f", {option['name']}: ..." for option in options if option["required"])
    implementation = f"`{entry.implementation}` of the distribution {record.distribution}"
    lines = [f"# {entry.name}", "", f"A {entry.kind.replace('-', ' ')}: {entry.summary}.", ""]
    description = " ".join((entry.config.__doc__ or "").split())
    if description and entry.kind != "backbone":
        lines += [description, ""]
    lines += [f"Implemented by {implementation}. In a recipe:", "", "```yaml"]
    lines += [_EXAMPLES[entry.kind].format(f"{tag}: {entry.name}{required}"), "```", ""]
    lines += _table(options) if options else ["It has no options."]
    gone = [f"* `{name}` was removed: {instead}" for name, instead in sorted(entry.config.removed.items())]
    return "\n".join([*lines, *([""] * bool(gone)), *gone, "", _AGAIN]) + "\n"


def _table(options: list[dict[str, Any]]) -> list[str]:
    rows = ["| option | type | default | what it means |", "|---|---|---|---|"]
    for option in options:
        default = "required" if option["required"] else f"`{flow(option['default'])}`"
        mutable = " A later phase may change it." if option["mutable"] else ""
        cells = (f"`{option['name']}`", option["type"], default, f"{option['description']}{mutable}")
        rows.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
    return rows
