"""`usdcore plan`: a dry run. What is in the model, whether the budget can be reached, what the phases will take; no
data is read.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import click


@click.command()
@click.argument("recipe", type=click.Path(path_type=Path))
@click.option("--set", "overrides", multiple=True, metavar="KEY=VALUE", help="Override a value.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def command(recipe: Path, overrides: tuple[str, ...], as_json: bool) -> None:
    """Show what RECIPE would do: units, budget, phases, the least cost that its strategies can reach."""
    from usdcore.engine.dryrun import dry_run
    from usdcore.recipe import read_recipe

    loaded = read_recipe(recipe, overrides)
    found = dry_run(loaded.recipe, loaded.written)
    click.echo(json.dumps(found, indent=1) if as_json else _words(found))


def _words(found: dict[str, Any]) -> str:
    dense = found["dense"]
    lines = [
        f"{found['model']} at {found['input_size']} px: {dense['macs'] / 1e6:,.2f}M MACs, "
        f"{dense['params'] / 1e6:,.3f}M parameters",
        f"{found['attention']} attention and {found['ffn']} feed-forward units in {found['blocks']} blocks",
        f"budget: {found['budget']['target']:g} of the dense {found['budget']['metric']}",
    ]
    for phase in found["phases"]:
        names = ", ".join(phase["strategies"]) or "plain training"
        lines.append(f"phase {phase['name']}: {phase['epochs']} epochs, {names}")
        if phase["least"] is not None:
            metric = found["budget"]["metric"]
            counted = "macs; a run measures its time" if metric == "latency" else metric
            lines.append(f"  can go down to {phase['least']:.4f} of the dense {counted}")
    memory = found["memory_bytes"]
    lines.append(f"weights, gradients and AdamW's state: {memory / 2**20:,.1f} MiB, before activations")
    if found["teacher_bytes"]:
        lines.append(f"teachers: {found['teacher_bytes'] / 2**20:,.1f} MiB more")
    lines += [f"note: {note}" for note in found["notes"]]
    return "\n".join(lines)
