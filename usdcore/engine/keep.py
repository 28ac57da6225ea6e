"""What a stage needs kept while it is trained: checkpoints now and then, the last good state, warnings.

The last good state is the one at the start of the epoch, held in memory: a rule that does not depend on the clock, so
a run that was broken off goes back to the same place as one that was not. A checkpoint from the middle of an epoch
therefore comes with a file of that state, written once an epoch.
"""

from __future__ import annotations

import copy
import time
from typing import TYPE_CHECKING, Any

from torch import Tensor

from usdcore.engine.checkpoint import read_state, write_state
from usdcore.engine.own import mine, with_all
from usdcore.errors import UsdcoreError

if TYPE_CHECKING:
    from pathlib import Path

    from usdcore.engine.fit import Fit
    from usdcore.engine.phases import Run

PATTERN = "epoch-*.safetensors"


class Epochs:
    """A `Keeper` of the run's own: see `usdcore.engine.fit`."""

    def __init__(self, run: Run) -> None:
        self.run = run
        self.good: dict[str, Any] | None = None
        self._seconds, self._processes = run.recipe.checkpoint.seconds, run.processes
        self._last_write = time.monotonic()

    def begin_epoch(self, fit: Fit) -> None:
        """Remember the state, unless it was gone back to before: that is done once a stage."""
        self.good = copied(self.run.state(fit)) if fit.state.lr_scale == 1.0 else None

    def after_step(self, fit: Fit) -> None:
        """Write a checkpoint if it is time by the first process's clock or a signal came to any, which then ends the
        run.
        """
        is_time = self._processes.is_first and time.monotonic() - self._last_write >= self._seconds
        is_time, is_stopped = self._processes.any(is_time, self.run.stop.requested)
        if is_time or is_stopped:
            self.write(fit)
        if is_stopped:
            raise KeyboardInterrupt

    def collapsed(self, fit: Fit, found: list[dict[str, str]]) -> None:
        """Warn of each gate that collapsed, once a run. A control's learn nothing anyway."""
        for one in found if self.run.stage < len(self.run.recipe.phases) else ():
            self.run.warn(f"phase {fit.stage.name}, epoch {fit.state.epoch + 1}: {one['text']}", one["site"])

    def write(self, fit: Fit) -> None:
        """A checkpoint of this moment; in the middle of an epoch, its start beside it."""
        path, made = self._path(fit), self.run.strategies.made
        state, good = with_all(self.run.state(fit), made, self._processes), None
        if self.good is not None and fit.state.step > 0 and not self._processes.from_first(path.is_file):
            good = with_all(self.good, made, self._processes)

        def write() -> None:
            if good is not None:
                write_state(good, path)
            self.run.folder.checkpoints.write(state)
            self.sweep(keep=2)

        self._processes.from_first(write)
        self._last_write = time.monotonic()

    def write_between(self) -> None:
        """A checkpoint between two stages."""
        state = with_all(self.run.state(None), self.run.strategies.made, self._processes)

        def write() -> None:
            self.run.folder.checkpoints.write(state)
            self.sweep()

        self._processes.from_first(write)

    def restored(self, fit: Fit, state: dict[str, Any]) -> None:
        """The run goes on from `state`; in the middle of an epoch, its start is in a file."""
        if fit.state.step == 0 or fit.state.lr_scale != 1.0:
            return
        try:
            self.good = mine(read_state(self._path(fit)), self._processes)
            is_ours = self.good["recipe_sha256"] == self.run.folder.sha256
        except (UsdcoreError, KeyError):
            is_ours = False
        if not is_ours:  # damaged or gone: the state itself is as good as it gets
            self.good = copied(state)

    def sweep(self, keep: int = 0) -> None:
        """Remove the files of epochs that nobody goes back to; a checkpoint before the last one may need the second
        last.
        """
        found = self.run.folder.checkpoints.folder.glob(PATTERN)
        for path in sorted(found, key=lambda p: p.stat().st_mtime_ns)[: -keep or None]:
            path.unlink(missing_ok=True)

    def _path(self, fit: Fit) -> Path:
        name = PATTERN.replace("*", f"{self.run.stage}-{fit.state.epoch}")
        return self.run.folder.checkpoints.folder / name


def copied(tree: Any) -> Any:
    """A copy of a state on the host that shares nothing with what goes on being trained."""
    if isinstance(tree, Tensor):
        return tree.detach().cpu() if tree.device.type != "cpu" else tree.detach().clone()
    if isinstance(tree, dict):
        return {key: copied(value) for key, value in tree.items()}
    if isinstance(tree, list | tuple):
        return type(tree)(copied(value) for value in tree)
    return copy.copy(tree)
