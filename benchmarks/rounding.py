"""Whether widths that the device is fast at make plans faster: random plans at equal MACs, rounded and as they come.

python benchmarks/rounding.py [--plans 20] [--rounds 7] [--batch 8] [--model deit_small_patch16_224]

Each plan removes heads and neurons by random scores down to a random share of the MACs. Its rounded twin has the same
scores and the same limit, and hidden widths in multiples of a step: 32, and the one that `usdcore.steps.fast_step`
measures here, which is what a budget of latency uses. Speed ratios above 1 mean that the rounded one is faster.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from pathlib import Path
from typing import Any

import numpy as np
import timm
import torch
from torch import nn

from usdcore.costs import Tree, cost
from usdcore.latency import Timing, measure_latency
from usdcore.machine import conditions
from usdcore.plans import Plan
from usdcore.projection import Limits, Projector
from usdcore.steps import fast_step, rounded_sizes
from usdcore.surgery import shrink
from usdcore.units import find_units

RESULT = Path(__file__).parent / "results" / "rounding.json"
FIXED = 32


def ratios(models: dict[str, nn.Module], asked: argparse.Namespace) -> dict[str, float]:
    """Times over that of the first model: processor time, which other programs disturb less."""
    image = tuple(asked.image.shape[1:])
    found = measure_latency(models, image, [asked.batch], Timing(asked.rounds, threads=1, clock=time.thread_time))
    return {name: rows[0]["ratio_to_dense"] for name, rows in found.items()}


def main() -> None:
    """Measure, print, write the result."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--model", default="deit_small_patch16_224")
    parser.add_argument("--plans", type=int, default=20)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--out", type=Path, default=RESULT)
    asked = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    model = timm.create_model(asked.model).eval()
    asked.image = torch.zeros(1, *model.pretrained_cfg["input_size"], device="meta")
    units = find_units(model, asked.image)
    tree = Tree(units)
    stated = conditions(torch.device("cpu"))
    step = fast_step(model, units, asked.image, lambda models: ratios(dict(models), asked))
    print(f"measured step: {step}")
    steps, rows = {"multiples of 32": FIXED, f"measured step ({step})": step}, []
    for seed in range(asked.plans):
        rng = np.random.default_rng(seed)
        groups = [g for g in units.groups.values() if g.kind in ("heads", "hidden")]
        scores = {g.name: rng.normal(size=g.size) + rng.normal() / 3 for g in groups}
        limits = Limits(rng.uniform(0.35, 0.8) * tree.total)
        plans = {"as they come": Plan(records=tuple(Projector(units, tree, scores, {}).project(limits).records))}
        for name, own in steps.items():
            projector = Projector(units, tree, scores, {}, rounded_sizes(units, scores, own))
            plans[name] = Plan(records=tuple(projector.project(limits).records))
        macs = {name: cost(units, plan).macs / tree.total for name, plan in plans.items()}
        cut = {name: shrink(model, plan, asked.image, units=units) for name, plan in plans.items()}
        found = ratios(cut, asked)
        rows.append({"seed": seed, "macs": macs, "speed": {name: 1 / found[name] for name in steps}})
        print(seed, {name: round(value, 4) for name, value in macs.items()}, rows[-1]["speed"], flush=True)
    summary: dict[str, Any] = {}
    for name in steps:
        speeds = [row["speed"][name] for row in rows]
        summary[name] = {
            "plans": len(rows),
            "median": statistics.median(speeds),
            "worst": min(speeds),
            "largest_macs_difference": max(row["macs"]["as they come"] - row["macs"][name] for row in rows),
        }
        print(name, summary[name])
    stated |= {"model": asked.model, "batch_size": asked.batch, "rounds": asked.rounds, "threads": 1, "step": step}
    stated |= {"clock": "time.thread_time", "dtype": "float32"}
    asked.out.write_text(json.dumps({"conditions": stated, "summary": summary, "rows": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
