"""Load what the trials left in a folder, in a process of its own: `python -m tests.matrix.reload FOLDER`."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import nn
from zoo import gap

import usdcore
from usdcore.plans import parse_plan
from usdcore.surgery import shrink

from .checks import run
from .models import find
from .subject import BATCH
from .trying import words

EXACT = 0.0


def reloaded(folder: Path) -> dict[str, float | str]:
    """In a new process: for each file the largest difference of the logits, or the error."""
    done = subprocess.run(
        [sys.executable, "-m", "tests.matrix.reload", str(folder)],
        cwd=Path(__file__).parents[2],
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        return {path.stem: done.stderr.strip()[-300:] for path in folder.glob("*.json")}
    found: dict[str, float | str] = json.loads(done.stdout.splitlines()[-1])
    return found


def load(note: Path) -> nn.Module:
    """The model of one file."""
    said = json.loads(note.read_text())
    entry, path = find(said["entry"]), note.with_suffix(".safetensors")
    if entry.base(said["is_small"]) is not None:
        return usdcore.load(path)
    plan = parse_plan(said["plan"], str(note))
    model = shrink(entry.model(said["is_small"]), plan, entry.images(said["is_small"], 1))
    model.load_state_dict(load_file(path), strict=True)
    return model.eval()


def main(folder: Path) -> None:
    """Print the differences as JSON."""
    torch.set_num_threads(1)
    found: dict[str, float | str] = {}
    for note in sorted(folder.glob("*.json")):
        said = json.loads(note.read_text())
        try:
            expected = load_file(note.with_suffix(".expected"))["logits"]
            found[note.stem] = gap(run(load(note), find(said["entry"]).images(said["is_small"], BATCH)), expected)
        except Exception as error:
            found[note.stem] = words(error)
    print(json.dumps(found))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
