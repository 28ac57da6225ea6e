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

from usdcore.errors import UsdcoreError, brief
from usdcore.jsontext import parse_json

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

if sys.platform != "win32":
    import fcntl

_LONGEST = 1000
_TRIES, _PAUSE = 3, 0.05
PATIENCE = 15.0
"""Seconds to wait for the lock of a process that is gone: its data workers hold it until they notice."""


@contextmanager
def locked(path: Path) -> Iterator[str | None]:
    """Hold a lock while the block runs; yields None, or who holds it already (then the block has nothing).

    The lock goes with the process, however that ends. On a file system without locks every process gets it, and the
    run's own folder is what is left to keep two apart. Errors: a place where no file can be made.
    """
    if sys.platform == "win32":
        yield None
        return
    with _explained(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK, 0o666)
    try:
        other = _waited_for(handle)
        if other is None:
            with _explained(path):
                os.ftruncate(handle, 0)
                os.pwrite(handle, json.dumps({"host": socket.gethostname(), "process": os.getpid()}).encode(), 0)
        yield other
    finally:
        os.close(handle)


def holder(path: Path) -> str | None:
    """Who works on a run now; None: nobody."""
    if sys.platform == "win32" or not path.is_file():
        return None
    with _explained(path):
        handle = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
    try:
        return _taken(handle, alone=False)
    finally:
        os.close(handle)


@contextmanager
def _explained(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        msg = f"{path}: can't be a lock ({error.strerror}); remove what is there, or choose another folder with --out"
        raise UsdcoreError(msg) from error


def _waited_for(handle: int) -> str | None:
    """Who has the lock and keeps it; None: it is ours now."""
    other, tried, deadline = _taken(handle), 0, time.monotonic() + PATIENCE
    while other is not None and (tried < _TRIES or (_is_orphan(handle) and time.monotonic() < deadline)):
        time.sleep(_PAUSE)  # whoever only looks holds it for a moment
        other, tried = _taken(handle), tried + 1
    return other


def _is_orphan(handle: int) -> bool:
    """Whether the process that a lock names ran on this machine and is gone."""
    if sys.platform == "win32":
        return False
    host, process = _stated(os.pread(handle, _LONGEST, 0)) or ("", 0)
    if host != socket.gethostname():
        return False
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return True
    except (OSError, OverflowError):
        return False
    return False


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
    stated = _stated(content)
    return "another process" if stated is None else brief(f"process {stated[1]} on {stated[0]}")


def _stated(content: bytes) -> tuple[str, int] | None:
    """Host and process; None of a process that was caught between its lock and its name, or of something else."""
    try:
        found = parse_json(content, "a lock")
    except UsdcoreError:
        return None
    if not isinstance(found, dict):
        return None
    host, process = found.get("host"), found.get("process")
    return (host, process) if isinstance(host, str) and type(process) is int and process > 0 else None
