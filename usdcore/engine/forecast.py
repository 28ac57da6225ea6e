"""What a recipe will take: steps, MACs, memory by count, and an estimate of time from a probe on the device at hand."""

from __future__ import annotations

import os
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

import torch

from usdcore.engine.amounts import Images, Pass, add_steps, count_images, passes
from usdcore.engine.data import preserved_generators
from usdcore.engine.dryrun import dry_run
from usdcore.engine.preflight import locating
from usdcore.engine.probe import Found, Prober
from usdcore.errors import UsdcoreError
from usdcore.machine import device_words

if TYPE_CHECKING:
    from collections.abc import Sequence

    from usdcore.engine.probe import Probe
    from usdcore.recipe import Recipe
    from usdcore.recipe.tree import Node

LEFT_OUT = "loading and augmenting images, checkpoints, reports, timing of latency, waiting for other work"
"""What the estimate does not hold."""
BUSY = 1.25
"""Waiting processes for each core above which a measured time is that of a busy machine; the probe is one of them."""


def forecast(
    recipe: Recipe, written: Node | None = None, images: tuple[int, ...] = (), probe: Probe | None = None
) -> dict[str, Any]:
    """A dry run of a recipe (`dry_run`), with what it will take.

    Args:
        recipe: a valid one.
        written: gives mistakes their lines.
        images: training and evaluation images, where they are stated.
        probe: for how long to probe; None: there is no estimate of time, nor one of activations.

    Returns:
        What `dry_run` and `add_steps` say, and `estimate`: of the whole run, in seconds and device-hours, with what it
        was measured on; None without a probe.
    """
    with preserved_generators():
        return _forecast(recipe, written, images, probe)


def _forecast(recipe: Recipe, written: Node | None, images: tuple[int, ...], probe: Probe | None) -> dict[str, Any]:
    with locating(("data",), written):
        counted = count_images(recipe, images)
    found = dry_run(recipe, written)
    add_steps(found, recipe, counted)
    if not counted.is_known:
        found["notes"].append(
            f"the number of images is {counted.source}, so hours can't be told; give --images TRAIN,EVALUATION"
        )
    found["estimate"] = None if probe is None else _estimate(found, recipe, counted, probe)
    return found


def _estimate(found: dict[str, Any], recipe: Recipe, images: Images, probe: Probe) -> dict[str, Any]:
    prober, started, probed = Prober(recipe, probe, images.train), probe.now(), list[Found]()
    try:
        probed.extend(prober.phases())
    except UsdcoreError as error:
        found["notes"].append(f"the probe ended early, so there is no estimate of time: {error}")
        return {"is_estimate": True, "hours": None}
    found["notes"] += [*(one.note for one in probed if one.note), *_busy(prober)]
    memories = [one.memory for one in probed if one.memory is not None]
    if memories:
        found["memory"] = max(memories, key=lambda memory: memory.peak or 0).as_json()
    stages = [_stage(one, stage, prober.rows) for one, stage in zip(probed, _stages(found), strict=True)]
    evaluation = _evaluation(recipe, images, probed[: len(recipe.phases)])
    parts = [*(stage["seconds"] for stage in stages), evaluation["seconds"]]
    seconds = None if None in parts else sum(parts)
    return {
        "is_estimate": True,
        "hours": None if seconds is None else seconds / 3600,
        "seconds": seconds,
        "stages": stages,
        "evaluation": evaluation,
        "measured_on": _conditions(recipe, prober) | {"probe_seconds": round(probe.now() - started, 1)},
        "left_out": LEFT_OUT,
    }


def _busy(prober: Prober) -> list[str]:
    """That the processor had other work: a CPU's time then says little of a quiet one's."""
    cores, load = os.cpu_count() or 1, os.getloadavg()[0] if hasattr(os, "getloadavg") else 0.0
    if prober.device.type != "cpu" or load <= BUSY * cores:
        return []
    return [
        f"this machine was busy while it was probed (load {load:.1f} on {cores} cores): a quiet one takes less time"
    ]


def _stages(found: dict[str, Any]) -> list[dict[str, Any]]:
    return [*found["phases"], *found["controls"]]


def _stage(one: Found, stage: dict[str, Any], rows: int) -> dict[str, Any]:
    """The time of one phase or control."""
    step, steps = one.step_seconds(rows), stage["steps"]
    sizes = sorted({size for pace in one.paces for size in pace.sizes})
    return {
        "name": one.name,
        "step_seconds": step,
        "steps": steps,
        "seconds": 0.0 if step is None else None if steps is None else step * steps,
        "images_per_step": rows,
        "probed_images": sizes,
        "is_scaled": bool(sizes) and sizes[-1] < rows,
        "probed_steps": sum(pace.calls for pace in one.paces),
        "memory": None if one.memory is None else one.memory.as_json(),
    }


def _evaluation(recipe: Recipe, images: Images, phases: Sequence[Found]) -> dict[str, Any]:
    """The time of all that is evaluated; `images` counts each pass."""
    if not images.is_known:
        return {"images": None, "seconds": None}
    all_of_it = list(passes(recipe, images, [one.compresses for one in phases], phases[-1].gated))
    return {"images": sum(one.images for one in all_of_it), "seconds": sum(_seconds(one, phases) for one in all_of_it)}


def _seconds(one: Pass, phases: Sequence[Found]) -> float:
    pace = phases[one.index].evaluating
    assert pace is not None
    whole, rest = divmod(one.images, one.batch_size)
    return whole * pace.of(one.batch_size) + (pace.of(rest) if rest else 0.0)


def _conditions(recipe: Recipe, prober: Prober) -> dict[str, Any]:
    """What stands beside a measured time."""
    device = prober.device
    return {
        "device": device_words(device),
        "type": device.type,
        "devices": 1,
        "threads": torch.get_num_threads(),
        "dtype": "bfloat16 (autocast)" if recipe.train.amp == "bf16" else "float32",
        "images": "made up",
        "load_average": [round(load, 2) for load in os.getloadavg()] if hasattr(os, "getloadavg") else None,
        "versions": {name: version(name) for name in ("usdcore", "torch", "timm")},
    }
