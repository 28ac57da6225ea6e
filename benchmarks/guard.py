"""What looking for bad numbers and for collapsed gates costs of a training step of a search, on one CPU core.

python benchmarks/guard.py

Timed inside real steps, so that caches are as they are in a run. Where a recipe clips gradients their norm is there
already; elsewhere the guard takes it, and that is counted.
"""

from __future__ import annotations

import contextlib
import datetime
import json
import platform
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from usdcore.artifact import create
from usdcore.engine import fit as fitting
from usdcore.engine.data import DataSets
from usdcore.engine.keep import copied
from usdcore.engine.log import RunLog
from usdcore.engine.setup import Strategies, make_base, make_budget
from usdcore.engine.watch import Watch
from usdcore.plans import Plan
from usdcore.recipe import load_recipe
from usdcore.session import Session

ROOT = Path(__file__).parent.parent
RESULT = ROOT / "benchmarks" / "results" / "guard.json"
CASES = [("quickstart.yaml", 32, 200), ("imagenet/deit_small_usdc.yaml", 8, 6)]
SPENT: list[float] = []


def timed(function: Callable[..., Any]) -> Callable[..., Any]:
    def call(*args: Any) -> Any:
        started = time.perf_counter()
        found = function(*args)
        SPENT.append(time.perf_counter() - started)
        return found

    return call


def make_fit(name: str, batch_size: int, steps: int, clip: str) -> tuple[fitting.Fit, torch.Tensor]:
    overrides = [f"train.clip_grad={clip}", "train.amp=none", "train.mixup=0", "train.cutmix=0"]
    recipe = load_recipe(ROOT / "recipes" / name, [*overrides, f"data.batch_size={batch_size}"])
    base = make_base(recipe.model, recipe.data.input_size, recipe.data.channels)
    session = Session(create(base), torch.zeros(1, *base.input_shape), make_budget(recipe.budget), Plan(base=base))
    phase = next(p for p in recipe.phases if p.strategies)
    strategies = Strategies().of(phase.strategies)
    session.begin_phase(strategies)
    length: Any = range(batch_size * steps)
    data = DataSets(length, length, length, base.num_classes, base.input_shape[0], "noise", "")
    log = RunLog(Path(tempfile.mkdtemp()) / "metrics.jsonl")
    around = fitting.Surroundings(data, recipe.data, 0, torch.device("cpu"), log, contextlib.nullcontext)
    stage = fitting.Stage(phase.name, 1, recipe.train_for(phase), 0)
    return fitting.Fit(session, stage, around, strategies), torch.randn(batch_size, *base.input_shape)


def measure(name: str, batch_size: int, steps: int, clip: str) -> dict[str, object]:
    fit, images = make_fit(name, batch_size, steps, clip)
    target = torch.arange(batch_size) % fit.around.data.num_classes
    fit.model.train()
    whole, looking = [], []
    for _ in range(steps):
        SPENT.clear()
        started = time.perf_counter()
        fit._step(images, target)
        whole.append(time.perf_counter() - started)
        looking.append(sum(SPENT))
        fit.state.step += 1
    started = time.perf_counter()
    copied(fit.state_dict())
    remembering, warm = time.perf_counter() - started, steps // 3
    step, spent = statistics.median(whole[warm:]), statistics.median(looking[warm:])
    return {
        "recipe": name,
        "batch_size": batch_size,
        "clips": clip != "null",
        "step_seconds": step,
        "looking_seconds": spent,
        "share": spent / step,
        "once_an_epoch_seconds": remembering,
    }


def main() -> None:
    torch.set_num_threads(1)
    fitting.Guard.loss = timed(fitting.Guard.loss)  # type: ignore[method-assign]
    fitting.Guard.gradients = timed(fitting.Guard.gradients)  # type: ignore[method-assign]
    Watch.look = timed(Watch.look)  # type: ignore[method-assign]
    fitting.gradient_norm = timed(fitting.gradient_norm)  # type: ignore[attr-defined]
    rows = [measure(*case, clip) for case in CASES for clip in ("1.0", "null")]
    for row in rows:
        print(json.dumps(row))
    conditions = {
        "torch": torch.__version__,
        "python": platform.python_version(),
        "threads": 1,
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
    }
    RESULT.write_text(json.dumps({"conditions": conditions, "rows": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
