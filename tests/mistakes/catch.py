"""How a mistake is caught, and the texts that are kept of it."""

from __future__ import annotations

import contextlib
import os
import re
from pathlib import Path
from typing import TYPE_CHECKING

from mistakes.table import GROUPS, MISTAKES

from usdcore.errors import UsdcoreError
from usdcore.hooks import build_registry, installed, using
from usdcore.recipe import load_recipe, read_recipe

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from mistakes.table import Mistake, Stage

ROOT = Path(__file__).parents[2]
GOLDEN = Path(__file__).parent / "texts.txt"
DOCS = ROOT / "docs" / "mistakes.md"
PLUGINS = ("usdc", "gatenets", "splits", "data", "uvc", "distill")
"""What is installed where these texts come from: whoever adds a plugin need not write them anew."""
COMMAND = "python tests/mistakes/update.py"

HEAD = f"""\
# Mistakes, and what is said about them

Every row is a recipe that somebody might write, tried. Each line of a message says where, what and what to do; all
mistakes of a file come at once. `validate` needs neither torch nor data; `plan` makes the model; `run` looks at
everything before it trains, so nothing here costs an epoch. The file is always `x.yaml`.

Made by `{COMMAND}`, checked by a test.
"""


@contextlib.contextmanager
def inside(folder: Path) -> Iterator[None]:
    """The current folder, for a while: places and paths in messages are relative to it."""
    before = Path.cwd()
    os.chdir(folder)
    try:
        yield
    finally:
        os.chdir(before)


def prepare(mistake: Mistake, folder: Path) -> None:
    """Write the recipe and what lies beside it."""
    for name, text in {**mistake.files, "x.yaml": mistake.text}.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)


def said(mistake: Mistake, stage: Stage) -> str | None:
    """What a stage says in the current folder; None where it finds nothing wrong. Any other error is raised."""
    from usdcore.engine.dryrun import dry_run
    from usdcore.engine.pipeline import run

    found = [candidate for candidate in installed() if candidate.name in PLUGINS]
    with using(build_registry(candidates=found)):
        return _said(mistake, stage, dry_run, run)


def _said(mistake: Mistake, stage: Stage, dry_run: Callable[..., object], run: Callable[..., object]) -> str | None:
    try:
        if stage == "validate":
            load_recipe("x.yaml", mistake.overrides)
        elif stage == "plan":
            loaded = read_recipe("x.yaml", mistake.overrides)
            dry_run(loaded.recipe, loaded.written)
        else:
            run("x.yaml", "out", mistake.overrides)
    except UsdcoreError as error:
        return str(error)
    return None


def golden() -> dict[str, str]:
    """The kept texts by the mistake's name."""
    parts = re.split(r"^== (.*) ==\n", GOLDEN.read_text(), flags=re.MULTILINE)[1:]
    return {name: text.removesuffix("\n") for name, text in zip(parts[::2], parts[1::2], strict=True)}


def as_golden(texts: dict[str, str]) -> str:
    """The file that `golden` reads."""
    return "".join(f"== {mistake.name} ==\n{texts[mistake.name]}\n" for mistake in MISTAKES)


def as_docs(texts: dict[str, str]) -> str:
    """The page with one row a mistake."""
    lines = [HEAD]
    for group, mistakes in GROUPS.items():
        lines += [f"## {group}\n", "| mistake | found by | message |", "|---|---|---|"]
        for mistake in mistakes:
            said_lines = texts[mistake.name].replace("|", "\\|").replace("`", "'").split("\n")
            shown = "<br>".join(f"`{line}`" for line in said_lines[len(said_lines) > 1 :])  # less "N mistakes"
            lines.append(f"| {mistake.name} | `{mistake.stage}` | {shown} |")
        lines.append("")
    return "\n".join(lines).rstrip("\n") + "\n"
