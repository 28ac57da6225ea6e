"""A lock goes with its process, and waits for the data workers of one that was killed."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from usdcore.ablate import locks
from usdcore.ablate.locks import holder, locked

ORPHAN = """
import os, signal, sys, time
from pathlib import Path
from usdcore.ablate.locks import locked
with locked(Path(sys.argv[1])):
    if os.fork() == 0:  # a data worker, which notices a little later
        time.sleep(float(sys.argv[2]))
        os._exit(0)
    os.kill(os.getpid(), signal.SIGKILL)
"""


def killed(path: Path, seconds: float) -> None:
    """A process that held a lock is killed; its worker lives on for so long."""
    subprocess.run([sys.executable, "-c", ORPHAN, str(path), str(seconds)], check=False, close_fds=True)


def test_it_is_waited_for_the_workers_of_a_killed_process(tmp_path: Path) -> None:
    killed(tmp_path / "c.json", 1.0)
    assert holder(tmp_path / "c.json") is not None
    with locked(tmp_path / "c.json") as other:
        assert other is None
        assert json.loads((tmp_path / "c.json").read_text())["process"] == os.getpid()


def test_but_not_for_ever(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(locks, "PATIENCE", 0.3)
    killed(tmp_path / "c.json", 3.0)
    with locked(tmp_path / "c.json") as other:
        assert str(other).startswith("process ")


def test_a_process_that_works_is_not_waited_for(tmp_path: Path) -> None:
    with locked(tmp_path / "c.json"):
        started = time.monotonic()
        with locked(tmp_path / "c.json") as other:
            assert other == f"process {os.getpid()} on {socket.gethostname()}"
        assert time.monotonic() - started < locks.PATIENCE / 3
    assert holder(tmp_path / "c.json") is None


@pytest.mark.parametrize("host", ["elsewhere", ""])
def test_of_other_machines_nothing_is_known(tmp_path: Path, host: str) -> None:
    with locked(tmp_path / "c.json"):
        (tmp_path / "c.json").write_text(json.dumps({"host": host, "process": 2**22 + 1}))
        started = time.monotonic()
        with locked(tmp_path / "c.json") as other:
            assert other == f"process {2**22 + 1} on {host}"
        assert time.monotonic() - started < locks.PATIENCE / 3
