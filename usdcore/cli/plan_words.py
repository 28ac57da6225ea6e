"""What `usdcore plan` says to people."""

from __future__ import annotations

from typing import Any

_SCALES = ((1e18, "E"), (1e15, "P"), (1e12, "T"), (1e9, "G"), (1e6, "M"))


def words(found: dict[str, Any]) -> str:
    """A dry run with its forecast, line by line."""
    lines = [*_model(found), *_work(found), *_memory(found["memory"])]
    if found["estimate"] is not None:
        lines += _estimate(found["estimate"])
    lines += [f"note: {note}" for note in found["notes"]]
    return "\n".join(lines)


def _model(found: dict[str, Any]) -> list[str]:
    dense, budget = found["dense"], found["budget"]
    cost = {"macs": "MACs", "params": "parameters"}.get(budget["metric"])
    counted = "" if cost is None else f", {_scaled(budget['cost'])} {cost}"
    return [
        f"{found['model']} at {found['input_size']} px: {dense['macs'] / 1e6:,.2f}M MACs, "
        f"{dense['params'] / 1e6:,.3f}M parameters",
        f"{found['attention']} attention and {found['ffn']} feed-forward units in {found['blocks']} blocks",
        f"budget: {budget['target']:g} of the dense {budget['metric']}{counted}",
    ]


def _work(found: dict[str, Any]) -> list[str]:
    images, metric = found["images"], found["budget"]["metric"]
    lines = [
        f"images: {_number(images['train'])} to train on, {_number(images['evaluation'])} to evaluate on "
        f"({images['source']})"
    ]
    for phase in (*found["phases"], *found["controls"]):
        names = ", ".join(phase.get("strategies", ())) or "plain training"
        title = phase["name"] if phase in found["controls"] else f"phase {phase['name']}"
        lines.append(f"{title}: {phase['epochs']} epochs, {names}")
        if phase["epochs"]:
            macs = f"{_scaled(phase['macs_per_step'])} MACs (forward, backward and teachers)"
            each = _number(phase["steps_per_epoch"])
            lines.append(f"  {_number(phase['steps'])} steps ({each} an epoch), each of {macs}")
        if phase.get("least") is not None:
            counted = "macs; a run measures its time" if metric == "latency" else metric
            lines.append(f"  can go down to {phase['least']:.4f} of the dense {counted}")
    return [*lines, f"in all {_number(found['steps'])} steps of {found['batch_size']:,} images"]


def _memory(memory: dict[str, Any]) -> list[str]:
    names = ("weights", "gradients", "optimizer", "average", "teachers", "activations")
    parts = ", ".join(f"{name} {_bytes(memory[name])}" for name in names if memory[name])
    if memory["peak"] is None:
        return [f"memory for training: {parts} ({memory['source']})"]
    return [f"memory for training, an estimate: at most about {_bytes(memory['peak'])}: {parts} ({memory['source']})"]


def _estimate(estimate: dict[str, Any]) -> list[str]:
    if "stages" not in estimate:
        return []
    on, stages = estimate["measured_on"], estimate["stages"]
    kind = "GPU-hours" if on["type"] == "cuda" else "CPU-hours"
    total = "can't be told" if estimate["hours"] is None else f"about {_hours(estimate['hours'])} {kind}"
    probed = sum(stage["probed_steps"] for stage in stages)
    lines = [
        f"ESTIMATE of time, from a probe and not from a run: {total} on one device",
        f"  measured on {on['device']}, {on['threads']} threads, {on['dtype']}: {probed} steps in "
        f"{on['probe_seconds']:g} s, made-up images, load {_load(on['load_average'])}",
    ]
    lines += [_stage(stage) for stage in stages if stage["step_seconds"] is not None]
    evaluation = estimate["evaluation"]
    if evaluation["seconds"] is not None:
        spent = _hours(evaluation["seconds"] / 3600)
        lines.append(f"  evaluation and calibration: {evaluation['images']:,} images in all, {spent} h")
    return [*lines, f"  not in it: {estimate['left_out']}"]


def _stage(stage: dict[str, Any]) -> str:
    sizes = " and ".join(str(size) for size in stage["probed_images"])
    how = (
        f"from steps of {sizes} images, scaled to {stage['images_per_step']:,}" if stage["is_scaled"] else "whole steps"
    )
    hours = "" if stage["seconds"] is None else f" x {stage['steps']:,} steps = {_hours(stage['seconds'] / 3600)} h"
    return f"  {stage['name']}: {_seconds(stage['step_seconds'])} a step{hours} ({how})"


def _number(value: int | None) -> str:
    return "an unknown number of" if value is None else f"{value:,}"


def _hours(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def _seconds(value: float) -> str:
    return f"{_hours(value)} s" if value >= 1 else f"{1e3 * value:.3g} ms"


def _load(average: list[float] | None) -> str:
    return "not known" if average is None else f"{average[0]:g}"


def _scaled(value: float) -> str:
    for scale, letter in _SCALES:
        if value >= scale:
            return f"{value / scale:,.2f}{letter}"
    return f"{value:,.0f}"


def _bytes(value: int) -> str:
    return f"{value / 2**30:,.2f} GiB" if value >= 2**30 else f"{value / 2**20:,.1f} MiB"
