"""Files that are either the old ones or the new ones, never half of either, and reading with bounds. Imports no torch.

Everything that usdcore writes goes through `aside` (written beside its place, flushed to the disk, then renamed) or
`append_line`. A file that is planted at either place is never written through.
"""

from __future__ import annotations

import contextlib
import os
import re
import secrets
import stat
from contextlib import contextmanager
from typing import TYPE_CHECKING

from usdcore.errors import UsdcoreError

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path
    from typing import BinaryIO

_ASIDE = re.compile(r"\..+\.[0-9a-f]{16}\.aside")
# Windows has neither a link that could be followed here, nor these flags.
_NO_LINK = getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_CLOEXEC", 0)
_BINARY = getattr(os, "O_BINARY", 0)


def write_atomic(path: Path, content: bytes) -> Path:
    """Write aside in the same folder, then replace `path` in one step. Missing folders are made. Errors: as `aside`."""
    with aside(path) as file:
        file.write(content)
    return path


@contextmanager
def aside(path: Path, keep: Path | None = None) -> Iterator[BinaryIO]:
    """A new file to write into; it takes the place of `path` when the block ends well, and goes when it does not.

    What was at `path` goes to `keep`, where that is given: for a moment there may be nothing at `path` then.

    Both the file and its folder are on the disk before this returns, so a power cut leaves the old file or the new one.
    Errors: `UsdcoreError` for a full disk, a folder that can't be written, a path that is a folder.
    """
    with _explained(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        # A name that nobody can guess, and O_EXCL: a link that was put there beforehand is not followed.
        beside = path.with_name(f".{path.name}.{secrets.token_hex(8)}.aside")
        handle = os.open(beside, os.O_WRONLY | os.O_CREAT | os.O_EXCL | _NO_LINK | _BINARY, 0o666)
        try:
            with os.fdopen(handle, "wb") as file:
                yield file
                file.flush()
                os.fsync(file.fileno())
            if keep is not None and path.exists():
                path.replace(keep)
            beside.replace(path)
            sync_folder(path.parent)
        finally:
            with contextlib.suppress(OSError):
                beside.unlink(missing_ok=True)


def append_line(path: Path, line: str) -> None:
    """Add one line to a file; a line that does not fit on the disk leaves the file as it was. Errors: as `aside`."""
    data = line.encode() + b"\n"
    if path.is_symlink():
        msg = f"{path}: a link to another file, through which usdcore never writes; remove it"
        raise UsdcoreError(msg)
    with _explained(path):
        handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND | _NO_LINK | _BINARY, 0o666)
        with os.fdopen(handle, "r+b", buffering=0) as file:
            before = os.fstat(handle).st_size
            try:
                if file.write(data) < len(data):
                    raise OSError(0, "no room for the whole line")
                os.fsync(handle)
            except OSError:
                os.ftruncate(handle, before)
                raise


def whole_lines(path: Path, limit: int = 2**30) -> list[bytes]:
    """The lines of a file that were written to their end; a last one that was torn off is left out. No file: none."""
    if not path.exists():
        return []
    lines = read_bytes(path, limit).splitlines(keepends=True)
    return lines if not lines or lines[-1].endswith(b"\n") else lines[:-1]


def read_bytes(path: Path, limit: int) -> bytes:
    """The content of an ordinary file. Errors: none there, a pipe, unreadable, longer than `limit` bytes."""
    with open_ordinary(path) as file:
        content = file.read(limit + 1)
    if len(content) > limit:
        msg = f"{path}: longer than {limit} bytes, so it is none of ours; remove it, or name another file"
        raise UsdcoreError(msg)
    return content


@contextmanager
def open_ordinary(path: Path) -> Iterator[BinaryIO]:
    """Open an ordinary file to read it; a pipe, on which reading would wait for ever, is not one.

    Errors: `UsdcoreError` for no file, a file of another kind, one that can't be read.
    """
    try:
        kind = path.stat().st_mode
        if not stat.S_ISREG(kind):
            what = "a folder" if stat.S_ISDIR(kind) else "a device or a pipe"
            msg = f"{path}: {what}, not a file; name the file itself"
            raise UsdcoreError(msg)
        opened = path.open("rb")
    except (FileNotFoundError, NotADirectoryError):
        msg = f"{path}: no such file; check the path"
        raise UsdcoreError(msg) from None
    except (OSError, ValueError) as error:  # ValueError: a null byte in the name
        raise UsdcoreError(_unreadable(path, error)) from None
    with opened as file:
        try:
            yield file
        except OSError as error:
            raise UsdcoreError(_unreadable(path, error)) from None


def sweep(folder: Path) -> None:
    """Remove what writers left aside when they were killed in the middle of a write."""
    with contextlib.suppress(OSError):
        for entry in folder.iterdir():
            if _ASIDE.fullmatch(entry.name):
                entry.unlink(missing_ok=True)


def sync_folder(folder: Path) -> None:
    """Bring a folder's names to the disk: a renamed file may else come back under its old name after a power cut."""
    if os.name != "posix":
        return
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _unreadable(path: Path, error: Exception) -> str:
    reason = getattr(error, "strerror", None) or error
    return f"{path}: can't be read ({reason}); check its permissions and its disk"


@contextmanager
def _explained(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        reason = error.strerror or error
        msg = (
            f"{path}: can't be written ({reason}); what was there before is as it was. "
            "Make room or check the permissions, then give the same command again"
        )
        raise UsdcoreError(msg) from error
