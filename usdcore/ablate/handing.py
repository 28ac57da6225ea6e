"""Hand a dense model on: the state of a finished stem as the state of a run that has just trained it itself.

A run that goes on from a state between two phases ends with the same weights as one that never stopped, and dense
training does not depend on what a run does later. So a row that starts here equals one that was run alone, to the bit.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from usdcore.ablate.jobs import plain_phases
from usdcore.engine.checkpoint import Checkpoints
from usdcore.errors import UsdcoreError
from usdcore.files import whole_lines, write_atomic
from usdcore.jsontext import parse_json
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
    lines = _lines(stem, number)
    try:
        facts = {"phases": state["facts"]["phases"][:number], "warnings": state["facts"]["warnings"]}
        seconds = sum(phase["seconds"] for phase in facts["phases"])
        is_end = state["fit"] is None and state["model"] is not None and len(facts["phases"]) == number
    except (LookupError, TypeError):  # of something else, under right checksums
        is_end = False
    if not is_end or lines is None:
        msg = f"{path}: not the end of a dense training; remove {stem} and give the same command again"
        raise UsdcoreError(msg)
    write_atomic(folder / "metrics.jsonl", b"".join(lines))
    write_atomic(folder / "recipe.yaml", dump_recipe(recipe).encode())
    Checkpoints(folder / "checkpoints").write(
        {
            **state,
            "recipe_sha256": recipe_sha256(recipe),
            "stage": number,
            "facts": facts,
            "carried": None,
            "strategies": {},
            "lines": len(lines),
            "seconds": seconds,
        }
    )


def _lines(stem: Path, number: int) -> list[bytes] | None:
    """What the stem wrote until the end of so many phases; None where that is not there. Errors: lines of something
    else.
    """
    found: list[bytes] = []
    file = stem / "metrics.jsonl"
    for line in whole_lines(file):
        found.append(line)
        stated = parse_json(line, str(file))
        if isinstance(stated, dict) and stated.get("event") == "phase":
            number -= 1
            if number == 0:
                return found
    return None
