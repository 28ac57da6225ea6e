"""What happens to files while they are written: a disk that is full, a folder that can't be written, links in the way,
a process that is killed.
"""

from __future__ import annotations

import os
import resource
import secrets
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from unittest import mock

import torch
from torch import nn

from usdcore.artifact import save
from usdcore.engine.checkpoint import Checkpoints, read_state
from usdcore.engine.log import RunLog
from usdcore.files import sweep, write_atomic
from usdcore.report.page import write_report

from . import made
from .run import run_in
from .table import UNTOUCHED, Table

disk = Table("The disk, while something is written")
links = Table("Links that were planted where something is written")

WHOLE = "the file is as it was, or new and whole"


@contextmanager
def full_disk(room: int = 600) -> Iterator[None]:
    """No file may grow beyond `room` bytes: the system's own limit, which needs no disk to fill."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (room, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@contextmanager
def read_only(folder: Path) -> Iterator[None]:
    """A folder that can't be written; root, who could all the same, is somebody else meanwhile."""
    mode, user = folder.stat().st_mode, os.geteuid()
    folder.chmod(0o555)
    if user == 0:
        os.seteuid(65534)
    try:
        yield
    finally:
        os.seteuid(user)
        folder.chmod(mode)


def _kept(act: Callable[[Path], object], *around: Callable[[Path], object]) -> Callable[[Path], None]:
    """The checkpoint that was there before is there afterwards, and nothing else is; passes the refusal on."""

    def attempt(place: Path) -> None:
        found = Checkpoints(place / "checkpoints")
        found.write({"moment": 1})
        try:
            act(place)
        finally:
            assert read_state(found.last) == {"moment": 1}
            assert [path.name for path in found.folder.iterdir()] == ["last.safetensors"]

    return attempt


def _write_large(place: Path) -> None:
    Checkpoints(place / "checkpoints").write({"weights": torch.ones(100_000)})


def _on_full_disk(place: Path) -> None:
    with full_disk():
        _write_large(place)


def _on_failing(name: str) -> Callable[[Path], None]:
    def act(place: Path) -> None:
        with mock.patch(f"usdcore.files.os.{name}", side_effect=OSError(28, "No space left on device")):
            _write_large(place)

    return act


def _in_read_only(place: Path) -> None:
    with read_only(place / "checkpoints"):
        _write_large(place)


disk.add("full, for a checkpoint", _kept(_on_full_disk))
disk.add("full, found out only when it is flushed", _kept(_on_failing("fsync")))
disk.add("a folder that can't be written, for a checkpoint", _kept(_in_read_only))


def _model(place: Path) -> None:
    save(nn.Linear(99, 99), made.plan(), place / "m.safetensors")


@disk("full, for a model")
def _full_model(place: Path) -> None:
    before = made.model_file(place).read_bytes()
    try:
        with full_disk():
            _model(place)
    finally:
        assert (place / "m.safetensors").read_bytes() == before


@disk("full, for a report")
def _full_report(place: Path) -> None:
    run = run_in(place)
    before = {path: path.read_bytes() for path in run.rglob("*.*") if path.is_file()}
    try:
        with full_disk():
            write_report(run)
    finally:
        assert {path: path.read_bytes() for path in run.rglob("*.*") if path.is_file()}.keys() == before.keys()
        assert (run / "report.md").read_bytes() == before[run / "report.md"]


@disk("full, for a line of metrics.jsonl")
def _full_line(place: Path) -> None:
    log = RunLog(place / "metrics.jsonl")
    log.write(epoch=0)
    before = log.path.read_bytes()
    try:
        with full_disk(len(before) + 10):
            log.write(epoch=1, loss=0.5)
    finally:
        assert log.path.read_bytes() == before


@disk("a file in the place of the folder of checkpoints")
def _file(place: Path) -> None:
    (place / "checkpoints").touch()
    _write_large(place)


@disk("a last line of metrics.jsonl that was torn off in the middle of a letter", WHOLE)
def _torn(place: Path) -> None:
    log = RunLog(place / "metrics.jsonl")
    for epoch in range(3):
        log.write(epoch=epoch)
    whole = log.path.read_bytes()
    log.path.write_bytes(whole + b'{"epoch": 3, "name": "\xc3')
    assert log.lines == 3
    log.rewind(9)
    assert log.path.read_bytes() == whole


@disk("killed at any moment of a write, 20 times", WHOLE)
def _killed(place: Path) -> None:
    found = Checkpoints(place)
    found.write({"moment": 0, "weights": torch.zeros(20_000)})
    for attempt in range(20):
        child = os.fork()
        if child == 0:  # pragma: no cover - it is killed
            for moment in range(10**6):
                found.write({"moment": moment, "weights": torch.full((20_000,), float(moment))})
            os._exit(0)
        time.sleep(0.004 + 0.0007 * attempt)
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        state, _, wrong = Checkpoints(place).read()
        assert not wrong
        assert torch.equal(state["weights"], torch.full((20_000,), float(state["moment"])))
    sweep(place)
    assert {path.name for path in place.iterdir()} <= {"last.safetensors", "previous.safetensors"}


@disk("a power cut after a file was renamed", WHOLE)
def _power(place: Path) -> None:
    """Cannot be tried; what makes it harmless is the order: content to the disk, name, folder to the disk."""
    done: list[str] = []
    fsync, replace = os.fsync, Path.replace

    def note_fsync(handle: int) -> None:
        done.append("folder" if os.path.isdir(f"/proc/self/fd/{handle}") else "file")  # noqa: PTH112
        fsync(handle)

    def note_replace(self: Path, target: Path) -> Path:
        done.append("name")
        return replace(self, target)

    with mock.patch("usdcore.files.os.fsync", note_fsync), mock.patch.object(Path, "replace", note_replace):
        write_atomic(place / "x", b"1")
    assert done == ["file", "name", "folder"]


def _linked(write: Callable[[Path], object], name: str) -> Callable[[Path], None]:
    def act(place: Path) -> None:
        (place / "other").write_text("mine")
        (place / name).symlink_to(place / "other")
        write(place)
        assert (place / "other").read_text() == "mine"
        assert not (place / name).is_symlink()

    return act


links.add("in the place of a model", _linked(_model, "m.safetensors"), UNTOUCHED)
links.add(
    "in the place of a result", _linked(lambda p: write_atomic(p / "result.json", b"{}"), "result.json"), UNTOUCHED
)


@links("in the place of the file aside, its name known beforehand")
def _guessed(place: Path) -> None:
    (place / "other").write_text("mine")
    token = "0" * 16
    (place / f".x.{token}.aside").symlink_to(place / "other")
    with mock.patch.object(secrets, "token_hex", return_value=token):
        try:
            write_atomic(place / "x", b"stolen")
        finally:
            assert (place / "other").read_text() == "mine"
            (place / f".x.{token}.aside").unlink(missing_ok=True)


TABLES = (disk, links)
