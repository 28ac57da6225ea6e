"""The measurement behind `usdcore bench`, and its file `bench.json`."""

from __future__ import annotations

import copy
import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

import torch

from usdcore.bench.causes import PARTS, cause, gap_of, odd_widths, parts_of
from usdcore.bench.subjects import DENSE, Place, Subject, images_of, scopes, subjects_of
from usdcore.errors import UsdcoreError, brief
from usdcore.files import write_atomic
from usdcore.latency import Timing, measure_latency
from usdcore.machine import conditions
from usdcore.measure import Meter
from usdcore.runner import gating_of

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from torch import Tensor, nn

    from usdcore.gates import Gating

FORMAT = 1
FILE = "bench.json"
NOT_COMPILED = (
    "torch.compile, skipping: it would be compiled anew for every number of images that skip; timed without it"
)
BATCH_SIZES = (1, 4, 16, 64, 256)


@dataclass(frozen=True)
class Wish:
    """What to measure. `dtypes` are names of torch's; `compiled` adds `torch.compile` beside eager; `images` is `data`
    or `random`; `scope` None leaves the gates' own.
    """

    batch_sizes: tuple[int, ...] = BATCH_SIZES
    timing: Timing = Timing(rounds=20, seconds=20.0)  # noqa: RUF009 (it is frozen)
    dtypes: tuple[str, ...] = ("float32",)
    compiled: bool = False
    images: str = "data"
    scope: str | None = None


@torch.inference_mode()
def bench(run: Path, wish: Wish, out: Path | None = None) -> dict[str, Any]:
    """Time the models of a run's folder or of one file, and write the result: to `out`, or as bench.json into the
    folder of a run. Errors: as `load`'s, for what RUN names, and a batch that does not fit.
    """
    place = Place.of(run)
    subjects, plan = subjects_of(place.file, wish.scope)
    assert plan.base is not None
    device = torch.device(wish.timing.device)
    images, words = images_of(place, plan.base, max(wish.batch_sizes), wish.images)
    rows: list[dict[str, Any]] = []
    fixed = [subject for subject in subjects if subject.gating is None]
    failed = [NOT_COMPILED] if wish.compiled and len(fixed) < len(subjects) else []
    for dtype in wish.dtypes:
        rows += compare(subjects, images, wish, dtype)
        try:
            rows += compare(fixed if wish.compiled else [], images, wish, dtype, is_compiled=True)
        except UsdcoreError:
            raise
        except Exception as error:  # a compiler has many ways to fail; what was measured without it stands
            failed.append(f"torch.compile, {dtype}: {brief(f'{type(error).__name__}: {error}', 300)}")
    found = {
        "format": FORMAT,
        "run": str(run),
        "model": plan.base.name,
        "input_shape": list(plan.base.input_shape),
        "conditions": conditions(device)
        | {
            "device": wish.timing.device if isinstance(wish.timing.device, str) else str(device),
            "threads": rows[0]["threads"],
            "images": words,
            "gates_decide_per": [scope for subject in subjects for scope in scopes(subject.gating)],
            "rounds": wish.timing.rounds,
            "seconds": wish.timing.seconds,
            "dense_weights": "random",
        },
        "models": {s.name: {"macs": s.macs, "params": s.cost.params} for s in subjects},
        "rows": rows,
        "failed": failed,
    }
    target = out or (place.folder / FILE if place.folder is not None else None)
    if target is not None:
        write_atomic(target, (json.dumps(found, indent=1) + "\n").encode())
        found["file"] = str(target)
    return found


def compare(
    subjects: list[Subject], images: Tensor, wish: Wish, dtype: str = "float32", is_compiled: bool = False
) -> Iterator[dict[str, Any]]:
    """Rows of every model at every batch size in one dtype, batch size by batch size; the first one is the dense."""
    kind = getattr(torch, dtype)
    typed = [copy.deepcopy(subject.model).to(kind) for subject in subjects]
    models: dict[str, nn.Module] = {
        subject.name: cast("nn.Module", torch.compile(model, dynamic=False)) if is_compiled else model
        for subject, model in zip(subjects, typed, strict=True)
    }
    gatings = {s.name: gating_of(model) for s, model in zip(subjects, typed, strict=True)}
    for batch_size in wish.batch_sizes if subjects else ():
        if is_compiled:
            torch.compiler.reset()
        meters = {s.name: Meter(s.units, gatings[s.name]) for s in subjects if s.gating is not None}

        def after(name: str, size: int, meters: dict[str, Meter] = meters) -> None:
            if name in meters:
                meters[name].add(size)

        found = measure_latency(models, tuple(images.shape[1:]), [batch_size], wish.timing, images, after)
        executed = {s.name: meters[s.name].result().macs if s.name in meters else float(s.macs) for s in subjects}
        parts: dict[str, dict[str, float]] = {}
        if not is_compiled:
            for subject, model in zip(subjects, typed, strict=True):
                median = found[subject.name][0]["median_ms"]
                parts[subject.name] = _profiled(model, images, batch_size, gatings[subject.name], median, wish.timing)
        for subject in subjects:
            row = found[subject.name][0] | {"model": subject.name, "compiled": is_compiled}
            yield _row(row, subject, executed[subject.name] / executed[subjects[0].name], parts)


def _profiled(
    model: nn.Module, images: Tensor, batch_size: int, gating: Gating | None, median_ms: float, timing: Timing
) -> dict[str, float]:
    index_B = torch.arange(batch_size) % len(images)
    device = torch.device(timing.device)
    model.to(device).eval()
    threads = torch.get_num_threads()
    torch.set_num_threads(timing.threads or threads)
    try:
        batch = images[index_B].to(device, next(model.parameters()).dtype)
        return parts_of(model, batch, gating, median_ms)
    finally:
        torch.set_num_threads(threads)


def _row(
    row: dict[str, Any], subject: Subject, macs_ratio: float, parts: dict[str, dict[str, float]]
) -> dict[str, Any]:
    """A row with throughput, the MACs ratio, the gap to it and what makes it."""
    ratio, batch_size = row.pop("ratio_to_dense"), row["batch_size"]
    row |= {
        "images_per_second": 1e3 * batch_size / row["median_ms"],
        "macs_ratio": macs_ratio,
        "time_ratio": ratio,
        "time_ratio_iqr": row.pop("ratio_iqr"),
        "gap": ratio - macs_ratio,
        "share_of_ideal": macs_ratio / ratio,
        "parts_ms": parts.get(subject.name),
        "gap_by_part": None,
        "cause": None,
    }
    if subject.name != DENSE and parts:
        by_part = gap_of(parts[subject.name], parts[DENSE], macs_ratio)
        odd = odd_widths(subject.units, getattr(torch, row["dtype"]))
        noise = row["time_ratio_iqr"] / max(row["rounds"], 1) ** 0.5
        row["gap_by_part"] = {part: by_part[part] for part in PARTS}
        row["cause"] = cause(row["gap"], by_part, noise, odd, batch_size)
    return row
