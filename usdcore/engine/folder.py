"""The folder of a run: whose it is, and where each file lies."""

from __future__ import annotations

import contextlib
import os
import sys
import time
from typing import TYPE_CHECKING, Any

from usdcore.artifact import load_with_plan
from usdcore.engine.checkpoint import Checkpoints
from usdcore.engine.difference import differences
from usdcore.errors import UsdcoreError, printable
from usdcore.files import read_bytes, sweep, write_atomic
from usdcore.jsontext import parse_json
from usdcore.recipe import dump_recipe, load_recipe, recipe_sha256
from usdcore.report.result import FORMAT, MAX_BYTES

if TYPE_CHECKING:
    from pathlib import Path

    import torch
    from torch import nn

    from usdcore.plans import Plan
    from usdcore.recipe import Recipe

if sys.platform != "win32":
    import fcntl

PATIENCE = 15.0
"""Seconds to wait for a folder: the data workers of a run that was killed hold it until they notice."""


class RunFolder:
    """Paths of a run. `check_owner` refuses a folder of another recipe, `claim` makes it this one's."""

    def __init__(self, path: Path, recipe: Recipe) -> None:
        self.path = path
        self.recipe = recipe
        self.sha256 = recipe_sha256(recipe)
        self.model = path / "model.safetensors"
        self.checkpoints = Checkpoints(path / "checkpoints")
        self.dense = path / "checkpoints" / "dense.safetensors"
        self._lock: int | None = None

    def control(self, name: str) -> Path:
        """The weights of a control."""
        return self.path / "checkpoints" / f"{name}.safetensors"

    def load(self, path: Path, device: torch.device) -> nn.Module:
        """A model of this run: dense, compressed, or a control's. There is one copy of each.

        Errors: one that is gone or damaged, with how to make it again.
        """
        return self.load_with_plan(path, device)[0]

    def load_with_plan(self, path: Path, device: torch.device) -> tuple[nn.Module, Plan]:
        """`load`, and the plan that the model was made by. Errors: as there."""
        try:
            return load_with_plan(path, device)
        except UsdcoreError as error:
            msg = (
                f"{error}. What this run made {path.name} from is gone: put a copy back, or remove "
                f"{self.checkpoints.folder} and give the same command again, which starts the run over"
            )
            raise UsdcoreError(msg) from error

    def claim(self) -> None:
        """Write whose the folder is, and clear away what a killed run left half written. Errors: a path that is no
        folder, or can't be written.
        """
        write_atomic(self.path / "recipe.yaml", dump_recipe(self.recipe).encode())
        self.lock()
        for folder in (self.path, self.path / "checkpoints", self.path / "figures"):
            sweep(folder)

    def lock(self) -> None:
        """Keep other processes from running in this folder, if it is there, until `release` or the end of this one.

        Errors: another process runs there.
        """
        if self._lock is not None or not self.path.is_dir() or sys.platform == "win32":
            return
        self._lock = os.open(self.path, os.O_RDONLY)
        deadline = time.monotonic() + PATIENCE
        with contextlib.suppress(OSError):  # a file system without locks
            while not _taken(self._lock):
                if time.monotonic() > deadline:
                    self.release()
                    msg = f"{self.path}: another process runs in this folder; wait for it, or choose another with --out"
                    raise UsdcoreError(msg)
                time.sleep(0.2)

    def release(self) -> None:
        """Let others run here."""
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None

    def result(self) -> dict[str, Any] | None:
        """What a finished run wrote; None if it is not finished, or if the file is damaged: the run's last steps then
        write it again.
        """
        path = self.path / "result.json"
        if not path.is_file():
            return None
        self.check_owner()
        try:
            found = parse_json(read_bytes(path, MAX_BYTES), str(path))
        except UsdcoreError:
            return None
        if not isinstance(found, dict) or found.get("recipe_sha256") != self.sha256:
            return None
        if found.get("format", FORMAT) != FORMAT:
            msg = f"{path}: of another format than the {FORMAT} of this usdcore; use the version that wrote it"
            raise UsdcoreError(msg)
        budget = found.get("budget")
        return found if isinstance(budget, dict) and {"met", "why"} <= budget.keys() else None

    def check_owner(self) -> None:
        """Errors: a folder that holds another recipe's run (with the difference), or something that is no run."""
        theirs = self.path / "recipe.yaml"
        if not theirs.is_file():
            if self.path.is_dir() and any(self.path.iterdir()):
                msg = f"{self.path}: not empty, and not the folder of a run; choose another one with --out"
                raise UsdcoreError(msg)
            return
        has_begun = self.checkpoints.exist or (self.path / "result.json").is_file()
        if not has_begun or recipe_sha256(other := self._belongs_to(theirs)) == self.sha256:
            return
        lines = "".join(f"\n  {printable(line)}" for line in differences(other, self.recipe))
        msg = (
            f"{self.path}: belongs to another recipe, which is in {theirs}; choose another folder with --out, or "
            f"remove it. The difference:{lines}"
        )
        raise UsdcoreError(msg)

    def _belongs_to(self, path: Path) -> Recipe:
        """Whose run the folder holds. Errors: a recipe that this usdcore can't read."""
        try:
            return load_recipe(path)
        except UsdcoreError as error:
            msg = (
                f"{self.path}: holds a run whose recipe is damaged, or was written by another version of usdcore or "
                "its plugins; go on with the version that wrote it, choose another folder with --out, or remove this "
                f"one. It can't be read here:\n  {error}"
            )
            raise UsdcoreError(msg) from error


def _taken(handle: int) -> bool:
    """Whether this process now has the lock on an open folder. Errors: `OSError` where nothing can be locked."""
    if sys.platform != "win32":
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
    return True
