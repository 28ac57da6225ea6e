"""`result.json`: every number of a run beside the conditions under which it was measured."""

from __future__ import annotations

import datetime
import platform
import subprocess
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from usdcore.artifact import create, read_plan
from usdcore.costs import cost
from usdcore.engine.timed import met
from usdcore.machine import device_words
from usdcore.plans import Keep, Plan
from usdcore.report.result import FORMAT
from usdcore.runner import gating_of
from usdcore.shares import removed
from usdcore.surgery import attach_plan, shrink
from usdcore.units import find_units

if TYPE_CHECKING:
    from usdcore.engine.phases import Run
    from usdcore.gates import Gating
    from usdcore.plans import Base
    from usdcore.units.types import AttentionUnit, Units

#: A gate counts as dynamic when its execution rate lies between these.
DYNAMIC = (0.02, 0.98)


def make_result(run: Run, latency: dict[str, list[dict[str, Any]]]) -> dict[str, Any]:
    """The whole of `result.json`."""
    recipe, facts, base = run.recipe, run.facts, run.base
    plan = read_plan(run.folder.model)
    dense_units = _units(base, Plan())
    units = _units(base, plan.without_gates())
    small = shrink(create(base), plan.without_gates())
    attach_plan(small, units, plan)
    gating = gating_of(small)
    dense_cost, small_cost = cost(dense_units), cost(units)
    own = recipe.budget.batch_size
    promised = next(row for row in facts["eval"] if row["batch_size"] == own and row["order"] == "shuffled")
    gate_params = sum(p.numel() for p in gating.parameters()) if gating is not None else 0
    total_epochs = sum(phase.epochs for phase in recipe.phases)
    result = {
        "format": FORMAT,
        "usdcore": version("usdcore"),
        "recipe": recipe.name,
        "recipe_sha256": run.folder.sha256,
        "model": base.name,
        "input_size": base.input_shape[1],
        "num_classes": base.num_classes,
        "dense": {
            "params": dense_cost.params,
            "macs": dense_cost.macs,
            "top1": facts["dense"]["top1"],
            "file_bytes": run.folder.dense.stat().st_size,
            "epochs": facts["dense"]["epochs"],
            "latency": latency["dense"],
        },
        "compressed": {
            "params": small_cost.params + gate_params,
            "macs": small_cost.macs + (gating.count_macs() if gating is not None else 0),
            "top1": promised["top1"],
            "file_bytes": run.folder.model.stat().st_size,
            "epochs": total_epochs,
            "latency": latency["compressed"],
            "executed_macs": promised["executed_macs"],
            "top1_before_finetune": facts.get("top1_before_finetune"),
        },
        "controls": _controls(run, latency),
        "budget": {},
        "eval": facts["eval"],
        "dial": facts["dial"],
        "structure": _structure(dense_units, units, plan, facts["rates"]),
        "removed": removed(dense_units, plan, "params" if recipe.budget.metric == "params" else "macs"),
        "gates": _gates(gating, facts["rates"]),
        "phases": facts["phases"],
        "warnings": facts["warnings"],
        "provenance": provenance(run),
    }
    result["budget"] = _budget(run, result["dense"], result["compressed"])
    if "timed" in facts:
        result["budget"]["found"] = facts["timed"]
    if "sizes" in facts:
        result["budget"]["round_to"] = facts["sizes"]
    if recipe.note:
        result["note"] = recipe.note
    return result


def provenance(run: Run) -> dict[str, Any]:
    """Versions, hardware, seed, data, time."""
    packages = ("usdcore", "torch", "timm", "numpy", "safetensors")
    return {
        "versions": {"python": platform.python_version(), **{name: version(name) for name in packages}},
        "device": device_words(run.device),
        "threads": torch.get_num_threads(),
        "processes": run.processes.world,
        "seed": run.recipe.seed,
        "data": {
            "source": run.recipe.data.source,
            "description": run.data.description,
            "fingerprint": run.data.fingerprint,
            "train_images": len(run.data.train),  # type: ignore[arg-type]
            "test_images": len(run.data.test),  # type: ignore[arg-type]
        },
        "seconds": round(run.seconds, 1),
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "commit": _commit(),
    }


def _budget(run: Run, dense: dict[str, Any], compressed: dict[str, Any]) -> dict[str, Any]:
    """What was asked, what was reached, and whether the promise was kept.

    The promise: within 0.5 % of the dense model on calibration images (or, without gates, by count), on evaluation
    images within 1 % plus two standard errors, the search itself within 5 % before any projection, and the shrunk model
    with all gates on at most 0.5 % above its own bound, where there is one. Of a budget of time: as `timed.met` says.
    """
    stated, facts, metric = run.recipe.budget, run.facts, run.recipe.budget.metric
    target, counted = stated.target, "params" if metric == "params" else "macs"
    static = compressed[counted] / dense[counted]
    achieved = compressed["executed_macs"] / dense["macs"] if metric == "macs" else static
    calibrated = facts.get("calibrated", achieved)
    tolerance = 0.01 + 2 * facts["standard_error"] / dense["macs"] if "calibrated" in facts else 0.005
    searched = facts.get("searched")
    reasons = []
    if metric == "latency":
        row = next(row for row in compressed["latency"] if row["batch_size"] == stated.batch_size)
        achieved, tolerance, why = met(row, target)
        static = achieved
        calibrated, searched = target, None if searched is None else searched / facts["timed"]["macs"] * target
        reasons += [why] if why else []
    if abs(calibrated - target) > 0.005:
        reasons.append(f"{calibrated:.4f} on calibration images for {target:g} asked")
    if metric != "latency" and abs(achieved - target) > tolerance:
        reasons.append(f"{achieved:.4f} on evaluation images for {target:g} asked")
    if searched is not None and abs(searched - target) > 0.05:
        reasons.append(f"the search itself came to {searched:.4f}, more than 0.05 from {target:g}")
    if stated.static is not None and static > stated.static + 0.005:
        reasons.append(f"the shrunk model alone has {static:.4f}, its bound is {stated.static:g}")
    return {
        "metric": metric,
        "target": target,
        "achieved": achieved,
        "calibrated": None if metric == "latency" else calibrated,
        "after_search": searched,
        "static": static,
        "batch_size": stated.batch_size,
        "scope": stated.scope,
        "tolerance": tolerance,
        "met": not reasons,
        "why": "; ".join(reasons),
    }


def _controls(run: Run, latency: dict[str, list[dict[str, Any]]]) -> list[dict[str, Any]]:
    """Those that were trained: one may have had to be left out, which a warning says."""
    return [
        {**run.facts[name], "file_bytes": run.folder.control(name).stat().st_size, "latency": latency[name]}
        for name in run.recipe.controls
        if name in run.facts
    ]


def _structure(dense: Units, small: Units, plan: Plan, rates: dict[str, float]) -> list[dict[str, Any]]:
    """Per block what is left: heads, hidden neurons, execution rates, the gate network."""
    heads, kept_heads = ({u.name: u.num_heads for u in units.attention} for units in (dense, small))
    hidden, kept_hidden = ({u.name: u.hidden for u in units.ffn} for units in (dense, small))
    cut = {record.group.removesuffix(":v_dims") for record in plan.records if isinstance(record, Keep)}
    dims = {u.name: _dims_of_heads(u) for u in small.attention if u.name in cut}
    left = set(small.branches)
    networks = {r.site: r.config.get("network", {}).get("use") for r in plan.attached.values()}
    layers = []
    for block in dense.blocks:
        layer: dict[str, Any] = {"block": block.name, "gate_network": networks.get(block.name)}
        for name in block.units:
            rate = rates.get(name)
            if name in heads:
                kept = kept_heads.get(name, 0) if name in left else 0
                layer["attention"] = {
                    "branch": name,
                    "heads": kept,
                    "heads_dense": heads[name],
                    "dims": dims.get(name) if kept else None,
                    "rate": rate,
                }
            elif name in hidden:
                kept = kept_hidden.get(name, 0) if name in left else 0
                layer["ffn"] = {"branch": name, "hidden": kept, "hidden_dense": hidden[name], "rate": rate}
        layers.append(layer)
    return layers


def _dims_of_heads(unit: AttentionUnit) -> list[int] | None:
    """How many value dims each head has left, where heads differ from the host's width."""
    group = next(group for group in unit.groups if group.kind == "v_dims")
    if group.parent_of is None or group.size == unit.num_heads * unit.v_dim:
        return None
    return [int((group.parent_of == head).sum()) for head in range(unit.num_heads)]


def _gates(gating: Gating | None, rates: dict[str, float]) -> dict[str, int]:
    gates = list(gating.all()) if gating is not None else []
    low, high = DYNAMIC
    return {
        "networks": len(gates),
        "decisions": sum(len(gate.sites) for gate in gates),
        "dynamic": sum(low <= rate <= high for rate in rates.values()),
        "macs": gating.count_macs() if gating is not None else 0,
        "paper_flops": sum(gate.paper_flops for gate in gates),
    }


def _units(base: Base, plan: Plan) -> Units:
    with torch.device("meta"):
        model = create(base)
    example = torch.zeros(1, *base.input_shape, device="meta")
    units: Units = find_units(shrink(model, plan, example), example)
    return units


def _commit() -> str | None:
    """The commit that this code was checked out from; None where it was installed without one."""
    here = Path(__file__)
    try:
        for command in (["ls-files", "--error-unmatch", here.name], ["rev-parse", "HEAD"]):
            done = subprocess.run(
                ["git", "-C", str(here.parent), *command], capture_output=True, text=True, check=False, timeout=10
            )
            if done.returncode != 0:
                return None
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip()
