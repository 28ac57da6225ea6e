"""Several processes of one run, forked from the test's own, which has imported everything already."""

from __future__ import annotations

import io
import multiprocessing
import os
import sys
import time
import warnings
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from usdcore.cli import main
from usdcore.engine import finish
from usdcore.engine.assess import Assessor
from usdcore.engine.processes import Processes, started


def launch(world: int, folder: Path, work: Callable[..., int | None], *args: Any) -> list[tuple[int | None, str]]:
    """`work(*args)` in `world` processes with a launcher's environment; their exit codes and what they said, by rank.

    One that hangs is killed after two minutes, and has code None.
    """
    store = dist.TCPStore("127.0.0.1", 0, None, True, timedelta(seconds=60), wait_for_workers=False)
    context, children = multiprocessing.get_context("fork"), []
    for rank in range(world):
        where = {
            "RANK": rank,
            "LOCAL_RANK": rank,
            "WORLD_SIZE": world,
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": store.port,
            "TORCHELASTIC_USE_AGENT_STORE": True,
        }
        environment = {name: str(value) for name, value in where.items()}
        child = context.Process(target=_child, args=(environment, folder / f"said-{rank}.txt", work, args))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # later Pythons warn of forks beside threads
            child.start()
        children.append(child)
    deadline = time.monotonic() + 120
    for child in children:
        child.join(max(0.1, deadline - time.monotonic()))
    codes = [child.exitcode for child in children]
    for child in children:
        child.kill()
        child.join()
    return [(code, (folder / f"said-{rank}.txt").read_text()) for rank, code in enumerate(codes)]


def _child(environment: dict[str, str], said: Path, work: Callable[..., int | None], args: Any) -> None:
    os.environ.update(environment)
    torch.set_num_threads(1)
    with said.open("w", buffering=1) as file:
        assert isinstance(file, io.TextIOWrapper)
        sys.stdout = sys.stderr = file
        code = work(*args)
        file.flush()
    sys.exit(code or 0)


def joined(work: Callable[..., None], *args: Any) -> int:
    """`work(processes, *args)` among the others."""
    with started(False) as processes:
        work(processes, *args)
    return 0


def run(recipe: Path, out: Path, *overrides: str, spoil: Callable[[], None] | None = None) -> int:
    """`usdcore run` without what takes long and only the first process does (evaluation in a new process, latency,
    figures), after `spoil`, in which this process may be given a fault.
    """
    finish.Finish._in_new_process = _in_this_process  # type: ignore[method-assign]
    finish.Finish._latency = lambda self: {"dense": [], "compressed": []}  # type: ignore[method-assign]
    finish.write_report = lambda folder: folder  # type: ignore[assignment]
    if spoil is not None:
        spoil()
    return main(["run", str(recipe), "--out", str(out), *(part for one in overrides for part in ("--set", one))])


def _in_this_process(self: finish.Finish) -> list[dict[str, Any]]:
    return Assessor(self.run.session, self.recipe, self.run.data, self.run.device).rows()


def rank() -> int:
    """Of the process that asks."""
    return int(os.environ["RANK"])


__all__ = ["Processes", "joined", "launch", "rank", "run"]
