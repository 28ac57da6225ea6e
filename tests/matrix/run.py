"""Run the matrix, each model in a process of its own, and write down what came of it."""

from __future__ import annotations

import datetime
import json
import multiprocessing
import platform
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

from .cases import CASES
from .checks import ALL, SLOW
from .entries import Entry
from .models import MODELS, find
from .reload import reloaded
from .subject import Subject
from .trying import Outcome, attempt, words

ROOT = Path(__file__).parents[2]
RESULT = ROOT / "benchmarks" / "results" / "pass_matrix.json"
MINUTES = 20


def run_all(entries: Iterable[Entry], jobs: int, is_small: bool = False) -> Iterator[dict[str, Any]]:
    """The results of some entries, as they come."""
    names = [entry.name for entry in entries]
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(jobs, mp_context=context, max_tasks_per_child=1) as pool:
        waiting = {pool.submit(run_one, name, is_small): name for name in names}
        for done in as_completed(waiting):
            name = waiting[done]
            try:
                yield done.result()
            except Exception as error:  # the process died
                yield described(find(name)) | {"error": words(error), "seconds": 0.0}


def run_one(name: str, is_small: bool = False) -> dict[str, Any]:
    """One model in all cases, and what a new process makes of its files."""
    torch.set_num_threads(1)
    signal.signal(signal.SIGALRM, _too_long)
    signal.alarm(60 * MINUTES)
    started, entry, folder = time.process_time(), find(name), Path(tempfile.mkdtemp())
    result = described(entry) | {"small": is_small}
    try:
        subject = Subject(entry, is_small)
        result |= counts(subject)
        outcomes = {case: attempt(subject, case, folder, _checks(entry, case)) for case in CASES}
        for stem, differs in reloaded(folder).items():
            outcome = outcomes[stem.rpartition("-")[2]]
            outcome.checks["reload"] = differs
            if differs != 0.0:
                outcome.problems["reload"] = f"differs: {differs}"
        result["cases"] = {case: told(outcome) for case, outcome in outcomes.items()}
    except Exception as error:
        result["error"] = words(error)
    finally:
        signal.alarm(0)
        shutil.rmtree(folder, ignore_errors=True)
    return result | {"seconds": round(time.process_time() - started, 1)}


def described(entry: Entry) -> dict[str, Any]:
    """Which model it is."""
    return {"name": entry.name, "family": entry.family, "source": entry.source, "headline": entry.is_headline}


def counts(subject: Subject) -> dict[str, Any]:
    """What is found in a model: prunable n of m by kind, with the reasons of the others."""
    units = subject.units
    kinds: dict[str, list[int]] = {kind: [0, 0] for kind in ("heads", "qk_dims", "v_dims", "hidden", "branches")}
    reasons: dict[str, str] = {}
    sites = [(g.kind, g.name, g.reason) for g in units.groups.values()]
    sites += [("branches", b.name, b.reason) for b in units.branches.values()]
    for kind, name, reason in sites:
        own = kinds.setdefault(kind, [0, 0])
        own[0] += reason is None
        own[1] += 1
        if reason is not None:
            reasons[name if kind != "branches" else f"{name} (branch)"] = reason
    cores = subject.num_cores
    return {
        "input_size": subject.images.shape[-1],
        "params": units.params,
        "macs": units.macs,
        "attention": [len(units.attention), cores],
        "prunable": kinds,
        "reasons": reasons,
    }


def told(outcome: Outcome) -> dict[str, Any]:
    """An outcome as it is kept; the reasons of what is refused are the model's."""
    return {
        "verdict": outcome.verdict,
        "asked": outcome.asked,
        "shrunk": outcome.shrunk,
        "single": outcome.single,
        "checks": outcome.checks,
        "problems": outcome.problems,
        "seconds": outcome.seconds,
    }


def line(result: dict[str, Any]) -> str:
    """A result on the terminal."""
    if "error" in result:
        return f"{result['name']:42} {result['error']}"
    cells = [
        f"{case} {c['verdict']} {c['shrunk']}/{c['asked']} {' '.join(c['problems'])}"
        for case, c in result["cases"].items()
    ]
    return f"{result['name']:42} {result['seconds']:6.1f} s  " + "; ".join(cells)


def conditions() -> dict[str, Any]:
    """What the results hold for."""
    return {
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "commit": _git("rev-parse", "--short", "HEAD") + ("+changes" if _git("status", "--porcelain") else ""),
        "python": platform.python_version(),
        "machine": platform.machine(),
        **{name: _version(name) for name in ("torch", "timm", "torchvision", "transformers")},
    }


def merged(rows: Iterable[dict[str, Any]], path: Path) -> dict[str, Any]:
    """New rows in the place of those of the same name, in the order of `MODELS`; each row bears the conditions that it
    was found under.
    """
    now = conditions()
    before = json.loads(path.read_text())["models"] if path.exists() else []
    by_name = {row["name"]: row for row in before} | {row["name"]: row | {"conditions": now} for row in rows}
    return {"models": [by_name[entry.name] for entry in MODELS if entry.name in by_name]}


def _checks(entry: Entry, case: str) -> tuple[str, ...]:
    """The slowest checks in the largest case alone; with all branches there for the headline models."""
    cases = ("C", "BD") if entry.is_headline else ("C",)
    return ALL if case in cases else tuple(name for name in ALL if name not in SLOW)


def _too_long(*_: object) -> None:
    msg = f"took more than {MINUTES} minutes"
    raise TimeoutError(msg)


def _git(*arguments: str) -> str:
    done = subprocess.run(
        ["git", "--no-optional-locks", *arguments], cwd=ROOT, capture_output=True, text=True, check=False
    )
    return done.stdout.strip()


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None
