"""The law about several processes: each sees a part of every batch, and all come to one model."""

from __future__ import annotations

import json
import multiprocessing
import os
import sys
import tempfile
import time
import traceback
import warnings
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist
from torch import Tensor

from usdcore.engine.buckets import average_step
from usdcore.engine.digest import digest
from usdcore.engine.evaluate import execute
from usdcore.engine.processes import Processes, started
from usdcore.errors import UsdcoreError
from usdcore.testing.laws import Broken, NotTried
from usdcore.testing.models import batch
from usdcore.testing.trial import Trial

if TYPE_CHECKING:
    from collections.abc import Callable

    from usdcore.testing.subject import Subject

WORLD = 2
SECONDS = 120
"""After which a process that hangs is killed."""


def agree(subject: Subject) -> None:
    """Two processes, each with its half of every batch, have the same weights, strategy state (less what it declares
    its `own`) and plan, after every step and at the end.
    """
    if sys.platform == "darwin" or "fork" not in multiprocessing.get_all_start_methods():
        raise NotTried("this system can't fork processes that use torch")
    Trial(subject, subject.models[0]).begin()
    with tempfile.TemporaryDirectory() as folder:
        reports = _launch(Path(folder), partial(_run, subject))
    for rank, report in enumerate(reports):
        if report is None:
            what = f"process {rank} of {WORLD} did not come to an end"
            raise Broken(subject.where, what, "every process must make the same calls of ctx.mean, in the same order")
        if "error" in report:
            raise Broken(subject.where, f"process {rank} of {WORLD}: {report['error']}", "it must run under torchrun")
    first, second = (report["places"] for report in reports if report is not None)
    for (place, here), (_, there) in zip(first, second, strict=True):
        if here != there:
            what = f"two processes do not have the same {place}"
            do = "remember means over all processes, ctx.mean(x), and decide from these alone; see docs/processes.md"
            raise Broken(subject.where, what, do)


def _run(subject: Subject, processes: Processes) -> list[tuple[str, str]]:
    """In one process: what stands for its state, by place."""
    trial = Trial(subject, subject.models[0])
    trial.session.mean = processes.mean
    trial.session.execute = partial(execute, processes=processes)
    trial.attach()
    trial.session.model.train()
    places = []
    for step in range(subject.steps):
        images, target = (_half(x, processes.rank) for x in batch(step))
        loss = trial.forward(step, images, target)
        loss.backward()  # type: ignore[no-untyped-call]
        trained = [
            p for o in (trial.optimizer, trial.strategy_optimizer) if o for g in o.param_groups for p in g["params"]
        ]
        average_step(processes, trial.session.model, trained, {"loss": loss.detach()})
        trial.update()
        places += _digests(trial, f"after step {step}")
    halves = [[_half(images, processes.rank)] for images in trial.calibration()]
    trial.session.end_phase(lambda: iter([images for (images,) in halves]))
    return places + _digests(trial, "at the end")


def _half(x: Tensor, rank: int) -> Tensor:
    size = len(x) // WORLD
    return x[rank * size : (rank + 1) * size]


def _digests(trial: Trial, when: str) -> list[tuple[str, str]]:
    found = [(f"weights {when}", digest(trial.session.model.state_dict()))]
    for strategy in trial.strategies:
        state = {key: value for key, value in strategy.state_dict().items() if key not in strategy.own}
        found.append((f"state_dict() {when}", digest(state)))
    return [*found, (f"plan {when}", trial.session.plan.model_dump_json())]


def _launch(folder: Path, work: Callable[[Processes], Any]) -> list[dict[str, Any] | None]:
    """What `work` gave in each process, None for one that hung or died."""
    store: Any = dist.TCPStore(  # type: ignore[attr-defined]
        "127.0.0.1", 0, None, True, timedelta(seconds=60), wait_for_workers=False
    )
    context, children = multiprocessing.get_context("fork"), []
    for rank in range(WORLD):
        child = context.Process(target=_child, args=(rank, store.port, folder / f"{rank}.json", work))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # later Pythons warn of forks beside threads
            child.start()
        children.append(child)
    deadline = time.monotonic() + SECONDS
    for child in children:
        child.join(max(0.1, deadline - time.monotonic()))
        child.kill()
        child.join()
    paths = [folder / f"{rank}.json" for rank in range(WORLD)]
    return [json.loads(path.read_text()) if path.is_file() else None for path in paths]


def _child(rank: int, port: int, path: Path, work: Callable[[Processes], Any]) -> None:
    where = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": WORLD, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    os.environ.update({name: str(value) for name, value in where.items()}, TORCHELASTIC_USE_AGENT_STORE="True")
    torch.set_num_threads(1)
    try:
        with started(False) as processes:
            report = {"places": work(processes)}
    except Exception as error:  # whatever a stranger's code raises is told to the first process
        report = {"error": f"{type(error).__name__}: {error}"}
        if not isinstance(error, UsdcoreError):
            traceback.print_exc(file=sys.__stderr__)
    aside = path.with_suffix(".aside")
    aside.write_text(json.dumps(report))
    aside.replace(path)
    os._exit(0)  # without pytest's own endings
