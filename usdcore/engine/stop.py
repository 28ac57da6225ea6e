"""Ending a run in good order: a signal asks for it, the training loop writes a checkpoint and stops."""

from __future__ import annotations

import os
import signal
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator


class Stop:
    """Set by SIGINT and SIGTERM; looked at after every step, so that a checkpoint is written before the run ends."""

    def __init__(self) -> None:
        self.requested = False

    def __call__(self, number: int, frame: object) -> None:
        """The signal's handler; a second signal ends the run at once."""
        if self.requested:
            os._exit(130)
        self.requested = True


@contextmanager
def interruptible() -> Iterator[Stop]:
    """While it is open, SIGINT and SIGTERM set the `Stop` that it gives."""
    stop = Stop()
    before = {}
    for number in (signal.SIGINT, signal.SIGTERM):
        try:
            before[number] = signal.signal(number, stop)
        except ValueError:  # not in the main thread: signals stay whose they are
            break
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
