"""Who works on a run: a lock on a file that names the process. One that is gone holds nothing. Imports no torch."""

from __future__ import annotations

import contextlib
import json
import os
import socket
import sys
import time
from contextlib import contextmanager
from typing import TYPE_CHECKING

from usdcore.errors import brief

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

if sys.platform != "win32":
    import fcntl

_LONGEST = 1000
_TRIES, _PAUSE = 3, 0.05


@contextmanager
def claimed(path: Path) -> Iterator[str | None]:
    """Hold a claim while the block runs; yields None, or who holds it already (then the block has nothing).

    The claim goes with the process, however that ends. On a file system without locks every process gets it, and the
    run's own folder is what is left to keep two apart.
    """
    if sys.platform == "win32":
        yield None
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o666)
    try:
        other = _taken(handle)
        for _ in range(_TRIES):
            if other is None:
                break
            time.sleep(_PAUSE)  # whoever only looks holds it for a moment
            other = _taken(handle)
        if other is None:
            os.ftruncate(handle, 0)
            os.pwrite(handle, json.dumps({"host": socket.gethostname(), "process": os.getpid()}).encode(), 0)
        yield other
    finally:
        os.close(handle)


def holder(path: Path) -> str | None:
    """Who works on a run now; None: nobody."""
    if sys.platform == "win32" or not path.is_file():
        return None
    handle = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
    try:
        return _taken(handle, alone=False)
    finally:
        os.close(handle)


def _taken(handle: int, *, alone: bool = True) -> str | None:
    """Lock an open file; who has locked it already, or None."""
    if sys.platform != "win32":
        with contextlib.suppress(OSError):  # a file system without locks
            try:
                fcntl.flock(handle, (fcntl.LOCK_EX if alone else fcntl.LOCK_SH) | fcntl.LOCK_NB)
            except BlockingIOError:
                return _named(os.pread(handle, _LONGEST, 0))
    return None


def _named(content: bytes) -> str:
    try:
        found = json.loads(content)
        return brief(f"process {found['process']} on {found['host']}")
    except (ValueError, KeyError, TypeError):  # caught between its lock and its name
        return "another process"
