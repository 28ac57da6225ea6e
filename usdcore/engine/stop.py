"""Ending a run in good order: a signal asks for it, the run ends with a checkpoint that it can go on from.

While a stage is trained or a checkpoint is written the signal is held back until that is safe: training looks at it
after every step, and writes a checkpoint first. Everywhere else (calibration, surgery, evaluation, latency, the report)
a checkpoint from which it is made again is there already, so the signal ends the run at once.
"""

from __future__ import annotations

import os
import signal
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator


class Stop:
    """The handler of SIGINT and SIGTERM; a second signal ends the process at once, unless this is one of several: a
    launcher passes on what the terminal has sent to each of them already.
    """

    def __init__(self, *, is_one_of_several: bool = False) -> None:
        self.requested = False
        self._is_one_of_several = is_one_of_several
        self._held = 0
        self._process = os.getpid()

    def __call__(self, number: int, frame: object) -> None:
        """A signal came."""
        if os.getpid() != self._process:
            return  # a loader's process, which inherits the handler: the run itself ends it
        if self.requested:
            if self._is_one_of_several:
                return
            os._exit(130)
        self.requested = True
        if not self._held:
            raise KeyboardInterrupt

    @contextmanager
    def held(self) -> Iterator[None]:
        """Inside, a signal is only noted; one that came ends the run when the block is left well."""
        self._held += 1
        try:
            yield
        finally:
            self._held -= 1
        if not self._held:
            self.look()

    def look(self) -> None:
        """End the run if a signal came."""
        if self.requested:
            raise KeyboardInterrupt


@contextmanager
def interruptible(*, is_one_of_several: bool = False) -> Iterator[Stop]:
    """While it is open, SIGINT and SIGTERM are handled by the `Stop` that it gives."""
    stop = Stop(is_one_of_several=is_one_of_several)
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
