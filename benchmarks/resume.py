"""Breaks runs off at many moments and compares what the same command then ends with to an unbroken run, bit by bit.

python benchmarks/resume.py run     # half an hour: writes benchmarks/results/resume.json and docs/resume.md
python benchmarks/resume.py page    # docs/resume.md again, from the results
"""

from __future__ import annotations

import datetime
import functools
import importlib
import json
import os
import platform
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent
RECIPE = ROOT / "benchmarks" / "resume.yaml"
RESULT = ROOT / "benchmarks" / "results" / "resume.json"
PAGE = ROOT / "docs" / "resume.md"
SEED = 20_000
TRIES = 5
"""A moment that a run did not live to see is taken earlier, so often at most."""

#: Name -> function whose n-th call is a moment, and whether that is before or after the call.
POINTS = {
    "at the start of a training step": ("usdcore.engine.fit:Fit._step", "before"),
    "between backward and the optimizer's step": ("usdcore.session:Session.after_backward", "before"),
    "between the optimizer's step and the averaging": ("usdcore.session:Session.after_step", "after"),
    "in a checkpoint's write, before it is flushed": ("os:fsync", "before"),
    "in a checkpoint's write, before a rename": ("pathlib:Path.replace", "before"),
    "in a checkpoint's write, after a rename": ("pathlib:Path.replace", "after"),
    "in surgery, between two slices": ("usdcore.surgery:slice_tensor", "before"),
    "in surgery, before the smaller model is traced": ("usdcore.session:shrink_found", "after"),
    "in calibration, at a batch": ("usdcore.measure:Meter.add", "before"),
    "while a phase's outcome is noted": ("usdcore.engine.log:RunLog.write", "after"),
    "while the saved model is evaluated in a new process": ("subprocess:Popen.communicate", "before"),
    "in the measurement of latency": ("usdcore.latency:_rounds", "before"),
    "between the result and the report": ("usdcore.engine.finish:write_report", "before"),
}
AT_RANDOM = "at a random time"


@dataclass(frozen=True)
class Moment:
    """When a run is broken off: at the `number`-th call of a point, or after `number` thousandths of its time."""

    point: str
    number: int
    workers: int = 0
    signal: str = "SIGKILL"


@dataclass(frozen=True)
class Outcome:
    """What became of a run that was broken off."""

    point: str
    number: int
    workers: int
    signal: str
    phase: str
    resumed: bool
    equal: bool


def child(recipe: str, out: str, moment: Moment, whole_seconds: float) -> int:
    """A run that ends itself; says in `out`.moment where."""
    from usdcore.cli import main

    if moment.point == AT_RANDOM:
        main_thread = threading.get_ident()
        wait = moment.number / 1000 * whole_seconds
        timer = threading.Timer(wait, lambda: end(out, moment, sys._current_frames()[main_thread]))
        timer.daemon = True
        timer.start()
    elif moment.point:
        arm(out, moment)
    return main(["run", recipe, "--out", out, "--set", f"data.workers={moment.workers}"])


def arm(out: str, moment: Moment) -> None:
    """Replace the point's function by one that counts its calls."""
    where, when = POINTS[moment.point]
    module_name, _, path = where.partition(":")
    owner: Any = importlib.import_module(module_name)
    *parents, name = path.split(".")
    for parent in parents:
        owner = getattr(owner, parent)
    real: Callable[..., Any] = getattr(owner, name)
    calls = 0

    @functools.wraps(real)
    def counted(*args: Any, **kwargs: Any) -> Any:
        nonlocal calls
        calls += 1
        now = calls == moment.number
        if now and when == "before":
            end(out, moment, sys._getframe())
        found = real(*args, **kwargs)
        if now and when == "after":
            end(out, moment, sys._getframe())
        return found

    setattr(owner, name, counted)


def end(out: str, moment: Moment, frame: Any) -> None:
    """Note where the run stands, and end it."""
    phase = "start"
    while frame is not None:
        run = frame.f_locals.get("self")
        run = getattr(run, "run", run)
        if type(run).__name__ == "Run" and hasattr(run, "stage"):
            controls = [f"control {name}" for name in run.recipe.controls]
            phase = [*(p.name for p in run.recipe.phases), "evaluation", *controls, "latency and report"][run.stage]
            break
        frame = frame.f_back
    Path(f"{out}.moment").write_text(phase)
    os.kill(os.getpid(), getattr(signal, moment.signal))


def start(recipe: Path, out: Path, moment: Moment, whole_seconds: float = 0.0) -> subprocess.CompletedProcess[str]:
    """One process of a run, with or without an end in view."""
    arguments = [str(recipe), str(out), json.dumps(asdict(moment)), str(whole_seconds)]
    command = [sys.executable, __file__, "child", *arguments]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.run(command, capture_output=True, text=True, check=False, env=environment)


def unbroken(recipe: Path, out: Path, workers: int) -> float:
    """A run that nobody disturbs; returns its seconds."""
    started = time.monotonic()
    done = start(recipe, out, Moment("", 0, workers))
    if done.returncode not in (0, 3):
        raise RuntimeError(done.stderr)
    return time.monotonic() - started


def break_off(recipe: Path, out: Path, moment: Moment, whole_seconds: float) -> tuple[bool, str]:
    """Whether the run was broken off (and, after a signal that asks, ended in good order), and in which phase."""
    note = Path(f"{out}.moment")
    note.unlink(missing_ok=True)
    done = start(recipe, out, moment, whole_seconds)
    wanted = -signal.SIGKILL if moment.signal == "SIGKILL" else 130
    is_orderly = moment.signal == "SIGKILL" or "To go on: the same command again\n  usdcore run " in done.stderr
    if (done.returncode != wanted or not is_orderly) if note.exists() else done.returncode not in (0, 3):
        msg = f"{moment}: ended with {done.returncode}: {done.stderr}"
        raise RuntimeError(msg)
    return note.exists(), note.read_text() if note.exists() else "done"


def try_moment(recipe: Path, folder: Path, moment: Moment, whole: Path, whole_seconds: float) -> Outcome:
    """Break a run off, go on with it, and compare. A run that ended before its moment is made again, with an earlier
    one.
    """
    out = folder / "broken"
    for _ in range(TRIES):
        shutil.rmtree(out, ignore_errors=True)
        is_reached, phase = break_off(recipe, out, moment, whole_seconds)
        if is_reached:
            break
        moment = replace(moment, number=max(1, moment.number * 2 // 3))
    else:
        msg = f"{moment}: no run comes to it"
        raise RuntimeError(msg)
    done = start(recipe, out, Moment("", 0, moment.workers))
    resumed = done.returncode in (0, 3)
    return Outcome(**asdict(moment), phase=phase, resumed=resumed, equal=resumed and equal(out, whole))


def equal(one: Path, other: Path) -> bool:
    """Whether two finished runs have the same weights (compressed, dense, control), results and metrics, bit by bit."""
    files = ["model.safetensors", *(f"checkpoints/{name}.safetensors" for name in ("dense", "narrow", "random"))]
    for name in files:
        if (one / name).exists() != (other / name).exists():
            return False
        if (one / name).exists() and (one / name).read_bytes() != (other / name).read_bytes():
            return False
    clean = [name for name in ("report.md", "report.html") if not (one / name).is_file()] == []
    return clean and _numbers(one) == _numbers(other) and _metrics(one) == _metrics(other)


def _numbers(folder: Path) -> Any:
    def without(value: Any) -> Any:
        if isinstance(value, dict):
            return {k: without(v) for k, v in value.items() if k not in ("seconds", "date", "latency", "waited")}
        return [without(v) for v in value] if isinstance(value, list) else value

    return without(json.loads((folder / "result.json").read_text()))


def _metrics(folder: Path) -> list[dict[str, Any]]:
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    clock = ("time", "images_per_second", "seconds", "waited")
    return [{key: value for key, value in line.items() if key not in clock} for line in lines]


def moments() -> list[Moment]:
    """21 with SIGKILL, seeded: seven at any time, the others in places that a random time seldom hits. Each with 0
    and with 3 loader workers; then five with a signal that asks.
    """
    rng = random.Random(SEED)
    killed = [Moment(AT_RANDOM, rng.randrange(300, 1000), workers) for workers in (0, 3, 0, 3, 0, 3, 0)]
    calls = {  # how often an unbroken run calls each
        "at the start of a training step": 88,
        "between backward and the optimizer's step": 44,
        "between the optimizer's step and the averaging": 44,
        "in a checkpoint's write, before it is flushed": 247,
        "in a checkpoint's write, before a rename": 214,
        "in a checkpoint's write, after a rename": 214,
        "in surgery, between two slices": 6,
        "in surgery, before the smaller model is traced": 1,
        "in calibration, at a batch": 268,
        "while a phase's outcome is noted": 6,
        "while the saved model is evaluated in a new process": 1,
        "in the measurement of latency": 1,
        "between the result and the report": 1,
    }
    killed += [
        Moment(point, rng.randint(1, most), 3 if index % 3 == 2 else 0)
        for index, (point, most) in enumerate(calls.items())
    ]
    asked = [
        Moment("at the start of a training step", rng.randint(12, 44), 3, "SIGINT"),
        Moment("in calibration, at a batch", rng.randint(12, 268), 0, "SIGTERM"),
        Moment("while the saved model is evaluated in a new process", 1, 0, "SIGTERM"),
        Moment("in the measurement of latency", 1, 0, "SIGINT"),
        Moment("between the result and the report", 1, 0, "SIGTERM"),
    ]
    killed.append(Moment("at the start of a training step", rng.randint(1, 11), 0))  # in the first phase
    return [*killed, *(replace(moment, workers=3 - moment.workers) for moment in killed), *asked]


def measure() -> dict[str, Any]:
    """Every moment, and the conditions."""
    import torch

    rows = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        seconds = {workers: unbroken(RECIPE, folder / f"whole{workers}", workers) for workers in (0, 3)}
        alike = equal(folder / "whole0", folder / "whole3")
        for moment in moments():
            outcome = try_moment(RECIPE, folder, moment, folder / "whole0", seconds[moment.workers])
            print(outcome, flush=True)
            rows.append(asdict(outcome))
    return {
        "conditions": {
            "recipe": str(RECIPE.relative_to(ROOT)),
            "torch": torch.__version__,
            "python": platform.python_version(),
            "system": platform.system(),
            "device": "cpu",
            "threads": 1,
            "seed": SEED,
            "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        },
        "equal_with_0_and_3_workers": alike,
        "rows": rows,
    }


def page(found: dict[str, Any]) -> str:
    """docs/resume.md."""
    rows, conditions = sorted(found["rows"], key=_order), found["conditions"]
    good = sum(row["resumed"] and row["equal"] for row in rows)
    words = {True: "yes", False: "NO"}
    lines = [
        "# Broken off and gone on with",
        "",
        "A run that is broken off goes on when the same command is given again, and ends with the same weights as a",
        "run that nobody disturbed: the same bits, on the CPU with the same number of threads. What may change in",
        "between: the device (then the numbers differ as devices do), the number of loader workers, paths, and how",
        "often the state is saved (`checkpoint.seconds`). Any other change of the recipe is refused, with the keys",
        "that differ.",
        "",
        "SIGINT (Ctrl-C) and SIGTERM write a checkpoint where one is needed, print the command to go on with, and end",
        "the process with exit code 130; a second one ends it at once. After SIGKILL, a crash or a power cut the run",
        "goes on from its last checkpoint.",
        "",
        "What was measured on the device when the run began (`round_to: auto`, the first share of a budget of",
        "`latency`) is kept. A budget of `latency` is also timed at the end of a phase: broken off just there, it is",
        "timed again, and a clock never says the same twice, so these runs go on but not to the same bits.",
        "",
        "The runs below are of USDC's two strategies. Every other strategy that has state of its own is killed in the",
        "middle of its search and in the phase behind it by `tests/engine/test_resume_plugins.py`: DynamicViT, AdaViT,",
        "ToMe, UVC, random gates, and those that stand beside each other. Each goes on to the same bits.",
        "",
        f"Of {len(rows)} runs that were broken off and gone on with, {good} ended with the weights (compressed, dense",
        "and control), the results and the metrics of the unbroken run with 0 workers, bit by bit. Unbroken runs with",
        f"0 and with 3 loader workers are equal: {words[found['equal_with_0_and_3_workers']]}.",
        "",
        *_counted(rows),
        "",
        "| moment | phase | workers | signal | resumed | equal |",
        "|---|---|---|---|---|---|",
        *(
            f"| {_moment(row)} | {row['phase']} | {row['workers']} | {row['signal']} "
            f"| {words[row['resumed']]} | {words[row['equal']]} |"
            for row in rows
        ),
        "",
        f"Conditions: `{conditions['recipe']}` (a checkpoint at every step), {conditions['device']}, "
        f"{conditions['threads']} thread, torch {conditions['torch']}, Python {conditions['python']}, "
        f"{conditions['system']}, moments drawn with seed {conditions['seed']}, {conditions['date'][:10]}"
        + (f", in {conditions['sessions']} sessions of the harness." if "sessions" in conditions else "."),
        "`python benchmarks/resume.py run` measures it again and writes this page.",
    ]
    return "\n".join(lines) + "\n"


def _counted(rows: list[dict[str, Any]]) -> list[str]:
    """Tables of how many there were of each kind, and how many of them ended equal."""
    lines = []
    for title, key in (("signal", _signal), ("phase", _phase)):
        kinds: dict[str, list[bool]] = {}
        for row in rows:
            kinds.setdefault(key(row), []).append(row["resumed"] and row["equal"])
        lines += [f"| {title} | broken off | equal to the bit |", "|---|---|---|"]
        lines += [f"| {kind} | {len(kinds[kind])} | {sum(kinds[kind])} |" for kind in sorted(kinds)] + [""]
    return lines[:-1]


def _signal(row: dict[str, Any]) -> str:
    return f"{row['signal']}, {row['workers']} loader workers"


def _phase(row: dict[str, Any]) -> str:
    return str(row["phase"])


def _order(row: dict[str, Any]) -> tuple[Any, ...]:
    """SIGKILL first, then by point, workers and number."""
    return row["signal"] != "SIGKILL", [AT_RANDOM, *POINTS].index(row["point"]), row["workers"], row["number"]


def _moment(row: dict[str, Any]) -> str:
    if row["point"] == AT_RANDOM:
        return f"{AT_RANDOM} ({row['number'] / 10:.1f} % of the unbroken run's)"
    return f"{row['point']} (call {row['number']})"


def main(arguments: list[str]) -> int:
    """`run`, `page`, or (for itself) `child`."""
    match arguments:
        case ["child", recipe, out, moment, seconds]:
            return child(recipe, out, Moment(**json.loads(moment)), float(seconds))
        case ["run"]:
            RESULT.write_text(json.dumps(measure(), indent=1) + "\n")
        case ["page"]:
            pass
        case _:
            print(__doc__, file=sys.stderr)
            return 1
    PAGE.write_text(page(json.loads(RESULT.read_text())))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
