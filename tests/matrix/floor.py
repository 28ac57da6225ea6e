"""Write floor.json, what is reached on the small models, whenever it is more: `python -m tests.matrix.floor`."""

from __future__ import annotations

import json
import sys
import tempfile
import warnings
from pathlib import Path
from typing import Any

import torch

from .checks import QUICK
from .entries import Entry
from .models import MODELS, find
from .subject import Subject
from .trying import Outcome, attempt

PATH = Path(__file__).with_name("floor.json")
#: The cases of a small model and what is checked there: dear checks once.
CASES = {
    "C": tuple(check for check in QUICK if check != "control"),
    "BD": tuple(check for check in QUICK if check != "unfused"),
}


def outcomes(entry: Entry, folder: Path) -> dict[str, Outcome]:
    """What comes of a small model."""
    subject = Subject(entry, is_small=True)
    return {
        case: attempt(subject, case, folder, (*checks, "export") if entry.is_headline and case == "C" else checks)
        for case, checks in CASES.items()
    }


def reached(outcome: Outcome) -> dict[str, Any]:
    """What of an outcome must not get worse: how much is cut, and which checks fail."""
    found: dict[str, Any] = {"cut": outcome.shrunk, "asked": outcome.asked}
    return found | ({"fails": sorted(outcome.problems)} if outcome.problems else {})


def main(names: list[str]) -> None:
    """Write the file; with names, replace their rows."""
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    rows = json.loads(PATH.read_text()) if names else {}
    with tempfile.TemporaryDirectory() as folder:
        for entry in [find(name) for name in names] or MODELS:
            if entry.has_small and entry.is_here:
                found = outcomes(entry, Path(folder))
                rows[entry.name] = {case: reached(outcome) for case, outcome in found.items()}
                print(entry.name, rows[entry.name], flush=True)
    lines = [f"  {json.dumps(name)}: {json.dumps(row)}" for name, row in rows.items()]
    PATH.write_text("{\n" + ",\n".join(lines) + "\n}\n")


if __name__ == "__main__":
    main(sys.argv[1:])
