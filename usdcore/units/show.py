"""Units as JSON and as rows of a table, for `usdcore units`."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

from usdcore.units.types import WIDTH

if TYPE_CHECKING:
    from usdcore.units.types import Branch, Group, Unit, Units

_NUMBER = re.compile(r"(?<=\.)\d+(?=\b)")
COLUMNS = ("unit", "group", "entries", "MACs of one", "parameters of one", "can be pruned")


def units_json(units: Units, model_name: str, input_size: int) -> dict[str, Any]:
    """Everything found, as plain data. MACs are per sample; the keys up to `blocks.units` are a promise to scripts."""
    return {
        "model": model_name,
        "input_size": input_size,
        "params": units.params,
        "macs": units.macs,
        "attention": [
            {
                "name": unit.name,
                "num_heads": unit.num_heads,
                "qk_dim": unit.qk_dim,
                "v_dim": unit.v_dim,
                "macs": unit.macs,
                **_inside(unit),
            }
            for unit in units.attention
        ],
        "ffn": [{"name": unit.name, "hidden": unit.hidden, "macs": unit.macs, **_inside(unit)} for unit in units.ffn],
        "width": [
            {**_group(group), "norms": list(group.norms), "members": len(group.members)}
            for group in units.widths.groups.values()
        ],
        "width_reason": units.widths.reason,
        "blocks": [
            {
                "name": block.name,
                "units": list(block.units),
                "width": block.width,
                "branches": [_branch(branch) for branch in block.branches],
            }
            for block in units.blocks
        ],
    }


def table_rows(units: Units) -> list[list[str]]:
    """One row for each group, under `COLUMNS`; the widths of residual streams last."""
    rows = [(unit.name, group) for unit in units.all for group in unit.groups]
    rows += [
        (group.name.removesuffix(WIDTH).rstrip(":") or "the model", group) for group in units.widths.groups.values()
    ]
    return [
        [
            place,
            group.kind,
            f"{group.size:,}",
            f"{group.macs_per_entry:,}",
            f"{group.params_per_entry:,}",
            "yes" if group.reason is None else "no",
        ]
        for place, group in rows
    ]


def reasons(units: Units) -> list[tuple[str, list[str]]]:
    """Each reason why something can't be pruned or skipped, with the groups and branches that it holds for.

    Numbers in module paths are shown as `*`, so that the same reason in every block is told once.
    """
    found: dict[str, list[str]] = {}
    for group in (*units.groups.values(), *units.widths.groups.values()):
        if group.reason is not None:
            found.setdefault(f"can't be pruned: {_NUMBER.sub('*', group.reason)}", []).append(group.name)
    for branch in units.branches.values():
        if branch.reason is not None:
            found.setdefault(f"can't be skipped: {_NUMBER.sub('*', branch.reason)}", []).append(branch.name)
    if not units.widths.groups:
        found[f"can't be pruned: {units.widths.reason}"] = [WIDTH]
    without = [unit.name for unit in units.all if unit.branch is None]
    if without:
        found["can't be skipped: not a residual branch of a block"] = without
    return list(found.items())


def _inside(unit: Unit) -> dict[str, Any]:
    return {
        "params": unit.params,
        "branch": unit.branch.name if unit.branch is not None else None,
        "groups": [_group(group) for group in unit.groups],
    }


def _group(group: Group) -> dict[str, Any]:
    return {
        "name": group.name,
        "kind": group.kind,
        "size": group.size,
        "macs_per_entry": group.macs_per_entry,
        "params_per_entry": group.params_per_entry,
        "prunable": group.reason is None,
        "reason": group.reason,
    }


def _branch(branch: Branch) -> dict[str, Any]:
    return {
        "name": branch.name,
        "macs": branch.macs,
        "params": branch.params,
        "gateable": branch.reason is None,
        "reason": branch.reason,
    }
