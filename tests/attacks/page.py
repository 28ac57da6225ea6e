"""docs/safety.md, made of the table."""

from __future__ import annotations

from itertools import groupby
from pathlib import Path

from . import HOSTILE, LOST
from .table import REFUSED

PATH = Path(__file__).parents[2] / "docs" / "safety.md"

HEAD = """# Safety of files

What was tried on every file that usdcore reads or writes, and what came of it. The tables are those of the tests
(`python -m tests.attacks` writes this page): each row is one test, in `tests/test_hostile.py` or
`tests/engine/test_files.py`. Beside these, random damage is tried in `tests/test_hostile_fuzz.py`.

## What runs code, and what does not

* **Plugins are code.** A strategy, gate network, split or data source runs with all the rights of whoever uses it, as
  any Python package does. Only installed distributions are loaded, through their entry points. A recipe or a model file
  can name what is installed and nothing else: no module path, no file, no address. Install a plugin only if you trust
  it.
* **Model files and checkpoints are safetensors with JSON in the header.** Nothing is unpickled. What the JSON asks for
  is checked against the file before anything is built: a model is first put together without memory for weights, and
  must have exactly the tensors that the file holds.
* **`model.weights` may be a torch file, which is a pickle.** It is read with torch's `weights_only`, which makes
  tensors and nothing else; whatever asks for more is refused. safetensors is the better choice.
* **Recipes are YAML without tags.** A recipe may name files for data and weights, which are then read.

## What is written

Every file is written beside its place, flushed to the disk, and renamed; a line of `metrics.jsonl` is appended whole or
not at all, and a package of `plugins new` appears with all of its files. A run keeps its newest checkpoint and the one
before it, and goes on from the newest that is whole:
[resume.md](resume.md) is about runs that were broken off. Model files and checkpoints have a format version and SHA-256
checksums of header and tensors; the version in a checkpoint is that of the run's `recipe.yaml` and `metrics.jsonl` too.
The checksums find accidents; they are no signature, and say nothing about who made a file.
"""

FOOT = """
## What is not covered

* A torch file can still waste time while torch reads it. Give safetensors where you do not trust the source.
* Images are decoded by Pillow, data sets opened by timm, torchvision or `datasets`; what they do with hostile files is
  theirs.
* Somebody who can write to a run's folder while usdcore runs can take its files away.
* A model that was trained to misbehave is a valid file.
"""


def text() -> str:
    """The page."""
    counts = len(HOSTILE) + len(LOST)
    refused = sum(attack.outcome == REFUSED for attack in (*HOSTILE, *LOST))
    parts = [
        HEAD,
        f"\n## What was tried\n\n{counts} attempts. {refused} end in one error message that says what is wrong ",
    ]
    parts.append(
        "where, and what to do; for the others the table says what happens instead. None ran code, left a file behind, "
        "or took more than a second or 300 MB.\n"
    )
    for title, attacks in groupby((*HOSTILE, *LOST), key=lambda attack: attack.part):
        parts.append(f"\n### {title}\n\n| tried | outcome |\n|---|---|\n")
        parts += [f"| {attack.name} | {attack.outcome} |\n" for attack in attacks]
    return "".join([*parts, FOOT])
