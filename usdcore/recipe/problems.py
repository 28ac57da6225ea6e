"""What is wrong with a recipe: one line each, all of them at once."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from usdcore.errors import UsdcoreError, brief, printable

if TYPE_CHECKING:
    from collections.abc import Iterable

    from usdcore.recipe.tree import Origin, Path


@dataclass(frozen=True)
class Problem:
    """One mistake: where it stands, which key it is about, what is wrong and what to do."""

    origin: Origin
    path: Path
    text: str

    def __str__(self) -> str:
        where = [str(self.origin), show_path(self.path)]
        return f"{' '.join(part for part in where if part)}: {printable(self.text)}"


MOST_LINES = 100
"""Mistakes that a message lists; a file with more of them is no recipe."""


class RecipeError(UsdcoreError):
    """Every mistake of a recipe: `problems`, also as text, one a line (of very many, the first hundred)."""

    def __init__(self, problems: Iterable[Problem]) -> None:
        self.problems = tuple(dict.fromkeys(problems))
        lines = [str(problem) for problem in self.problems[:MOST_LINES]]
        if len(lines) > 1:
            lines.insert(0, f"{len(self.problems)} mistakes")
        if len(self.problems) > MOST_LINES:
            lines.append(f"and {len(self.problems) - MOST_LINES} more; mend these first")
        super().__init__("\n".join(lines))


def show_path(path: Path) -> str:
    """``("phases", 1, "epochs")`` as ``phases[1].epochs``."""
    text = ""
    for part in path:
        key = part if isinstance(part, int) else brief(part)
        text += f"[{key}]" if isinstance(part, int) else f".{key}" if text else str(key)
    return text
