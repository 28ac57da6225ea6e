"""The folder of a run: whose it is, and where each file lies."""

from __future__ import annotations

import difflib
import json
from typing import TYPE_CHECKING, Any

from usdcore.errors import UsdcoreError
from usdcore.files import write_atomic
from usdcore.recipe import dump_recipe, load_recipe, recipe_sha256

if TYPE_CHECKING:
    from pathlib import Path

    from usdcore.recipe import Recipe


class RunFolder:
    """Paths of a run. `check_owner` refuses a folder of another recipe, `claim` makes it this one's."""

    def __init__(self, path: Path, recipe: Recipe) -> None:
        self.path = path
        self.recipe = recipe
        self.sha256 = recipe_sha256(recipe)
        self.model = path / "model.safetensors"
        self.checkpoint = path / "checkpoints" / "last.safetensors"
        self.dense = path / "checkpoints" / "dense.safetensors"

    def control(self, name: str) -> Path:
        """The weights of a control."""
        return self.path / "checkpoints" / f"{name}.safetensors"

    def claim(self) -> None:
        """Errors: a path that is no folder, or can't be written."""
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            write_atomic(self.path / "recipe.yaml", dump_recipe(self.recipe).encode())
        except OSError as error:
            msg = f"{self.path}: can't write the run's folder: {error.strerror or error}"
            raise UsdcoreError(msg) from None

    def result(self) -> dict[str, Any] | None:
        """What a finished run wrote; None if it is not finished."""
        path = self.path / "result.json"
        if not path.is_file():
            return None
        self.check_owner()
        try:
            found: dict[str, Any] = json.loads(path.read_text())
        except ValueError:
            return None  # damaged: the run's last steps write it again
        return found

    def check_owner(self) -> None:
        """Errors: a folder that holds another recipe's run (with the difference), or something that is no run."""
        theirs = self.path / "recipe.yaml"
        if not theirs.is_file():
            if self.path.is_dir() and any(self.path.iterdir()):
                msg = f"{self.path}: not empty, and not the folder of a run; choose another one with --out"
                raise UsdcoreError(msg)
            return
        has_begun = self.checkpoint.is_file() or (self.path / "result.json").is_file()
        if not has_begun or recipe_sha256(load_recipe(theirs)) == self.sha256:
            return
        lines = difflib.unified_diff(
            theirs.read_text().splitlines(),
            dump_recipe(self.recipe).splitlines(),
            "there",
            "asked for",
            lineterm="",
            n=0,
        )
        msg = (
            f"{self.path}: belongs to another recipe; choose another folder with --out, or remove it. The difference:\n"
        )
        raise UsdcoreError(msg + "\n".join(lines))
