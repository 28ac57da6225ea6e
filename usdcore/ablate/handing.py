"""Hand a dense model on: the state of a finished stem as the state of a run that has just trained it itself.

A run that goes on from a state between two phases ends with the same weights as one that never stopped, and dense
training does not depend on what a run does later. So a row that starts here equals one that was run alone, to the bit.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

from usdcore.ablate.jobs import plain_phases
from usdcore.engine.checkpoint import Checkpoints
from usdcore.errors import UsdcoreError
from usdcore.files import whole_lines, write_atomic
from usdcore.recipe import dump_recipe, recipe_sha256

if TYPE_CHECKING:
    from pathlib import Path

    from usdcore.recipe import Recipe


def hand_on(stem: Path, folder: Path, recipe: Recipe) -> None:
    """Make `folder` that of a run of `recipe` whose dense phases are done, as `stem` did them.

    Errors: a stem whose last state is gone or damaged, with how to make it again.
    """
    number = len(plain_phases(recipe))
    state, path, _ = Checkpoints(stem / "checkpoints").read()
    facts, lines = state["facts"], _lines(stem, number)
    if state["fit"] is not None or state["model"] is None or len(facts["phases"]) < number or lines is None:
        msg = f"{path}: not the end of a dense training; remove {stem} and give the same command again"
        raise UsdcoreError(msg)
    phases = facts["phases"][:number]
    write_atomic(folder / "metrics.jsonl", b"".join(lines))
    write_atomic(folder / "recipe.yaml", dump_recipe(recipe).encode())
    Checkpoints(folder / "checkpoints").write(
        {
            **state,
            "recipe_sha256": recipe_sha256(recipe),
            "stage": number,
            "facts": {"phases": phases, "warnings": facts["warnings"]},
            "carried": None,
            "strategies": {},
            "lines": len(lines),
            "seconds": sum(phase["seconds"] for phase in phases),
        }
    )


def _lines(stem: Path, number: int) -> list[bytes] | None:
    """What the stem wrote until the end of so many phases; None where that is not there."""
    found: list[bytes] = []
    for line in whole_lines(stem / "metrics.jsonl"):
        found.append(line)
        if json.loads(line).get("event") == "phase":
            number -= 1
            if number == 0:
                return found
    return None
