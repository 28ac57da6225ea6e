"""What a run says while it runs: one JSON line per epoch in `metrics.jsonl`, and progress on the terminal."""

from __future__ import annotations

import json
import sys
import time
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

from usdcore.files import append_line, whole_lines, write_atomic

if TYPE_CHECKING:
    from pathlib import Path

#: A share of an epoch that is worth a word to people.
WAITING = 0.1


class RunLog:
    """A bar on a terminal; elsewhere a plain line at most every `interval` seconds, and at the end of each stage."""

    def __init__(self, path: Path, interval: float = 10.0) -> None:
        self.path = path
        self.console = Console(stderr=True, highlight=False)
        self.interval = interval
        self._last = time.monotonic()
        self._progress: Progress | None = None
        self._task: tuple[str, TaskID] | None = None
        self._words = ""

    def say(self, text: str) -> None:
        """A line for people."""
        self.close()
        self.console.print(text, markup=False)

    def write(self, **values: Any) -> None:
        """Append one line to metrics.jsonl."""
        append_line(self.path, json.dumps({"time": round(time.time(), 3), **values}))

    def tick(self, stage: str, epoch: int, epochs: int, share: float) -> None:
        """A step was taken; `share` of the epoch is done."""
        if not sys.stderr.isatty():
            return
        if self._progress is None or self._task is None or self._task[0] != stage:
            self.close()
            columns = (
                TextColumn("{task.description}"),
                BarColumn(),
                TimeRemainingColumn(),
                TextColumn("{task.fields[words]}"),
            )
            self._progress = Progress(*columns, console=self.console, transient=True)
            self._progress.start()
            self._task = (stage, self._progress.add_task(stage, total=epochs, words=""))
        self._progress.update(self._task[1], completed=epoch + share, words=self._words)

    def epoch(
        self,
        stage: str,
        epoch: int,
        epochs: int,
        means: dict[str, float],
        images_per_second: float,
        waited: float,
    ) -> None:
        """An epoch is done; for the share `waited` of its time there were no data to train on."""
        rate = round(images_per_second, 1)
        self.write(stage=stage, epoch=epoch, images_per_second=rate, waited=round(waited, 4), **means)
        parts = [f"{name} {value:.4f}" for name, value in means.items()]
        self._words = "  ".join(parts)
        is_last = epoch + 1 == epochs
        if not sys.stderr.isatty() and (is_last or time.monotonic() - self._last > self.interval):
            self._last = time.monotonic()
            words = f"{images_per_second:.0f} images/s" + (
                f", {waited:.0%} waiting for data" if waited > WAITING else ""
            )
            self.console.print(f"{stage} {epoch + 1}/{epochs}  {self._words}  {words}", markup=False, soft_wrap=True)

    def rewind(self, lines: int) -> None:
        """Forget what was written after the checkpoint that the run goes on from, and a line that was torn off."""
        if self.path.is_file():
            write_atomic(self.path, b"".join(whole_lines(self.path)[:lines]))

    @property
    def lines(self) -> int:
        """How many lines were written so far."""
        return len(whole_lines(self.path))

    def close(self) -> None:
        """Take the bar off the terminal."""
        if self._progress is not None:
            self._progress.stop()
        self._progress, self._task = None, None


class SilentLog(RunLog):
    """For a process that leaves speaking and writing to another."""

    def say(self, text: str) -> None:
        """Nothing."""

    def write(self, **values: Any) -> None:
        """Nothing."""

    def tick(self, stage: str, epoch: int, epochs: int, share: float) -> None:
        """Nothing."""

    def epoch(
        self,
        stage: str,
        epoch: int,
        epochs: int,
        means: dict[str, float],
        images_per_second: float,
        waited: float,
    ) -> None:
        """Nothing."""

    def rewind(self, lines: int) -> None:
        """Nothing."""
