"""Whether sizes that the device is fast at make plans faster: random plans at equal MACs, rounded and as they come.

python benchmarks/rounding.py [--plans 20] [--rounds 21] [--batch 8] [--dims] [--model deit_small_patch16_224]

Each plan removes heads and neurons (with `--dims` also single dims of heads) by random scores down to a random share of
the MACs. Its rounded twin has the same scores and the same limit, and sizes in multiples of a step: 32, and the one
that is measured here as `budget.round_to: auto` does. Speed ratios above 1 mean that the rounded one is faster: the
median over rounds, in each of which all twins run one after the other in a random order, beside its standard error.
Where two twins' MACs differ by more than 0.5 %, the ratio is of MACs per second.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Mapping
from functools import partial
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
from usdcore.steps import fast_step, rounded_sizes, slowdowns
from usdcore.surgery import shrink
from usdcore.units import find_units

RESULT = Path(__file__).parent / "results" / "rounding.json"
FIXED, PLAIN = 32, "as they come"
#: MACs that differ by no more than this count as equal.
EQUAL = 0.005


def timed(models: Mapping[str, nn.Module], asked: argparse.Namespace, rounds: int) -> dict[str, dict[str, Any]]:
    """Times over that of the first model, and their spread: processor time, which other programs disturb less."""
    timing = Timing(rounds, threads=1, clock=time.thread_time)
    found = measure_latency(models, tuple(asked.image.shape[1:]), [asked.batch], timing)
    return {name: rows[0] for name, rows in found.items()}


def ratios(models: Mapping[str, nn.Module], asked: argparse.Namespace) -> dict[str, float]:
    """The ratios alone."""
    return {name: row["ratio_to_dense"] for name, row in timed(models, asked, asked.rounds).items()}


def compare(cut: dict[str, nn.Module], macs: dict[str, int], asked: argparse.Namespace) -> dict[str, dict[str, float]]:
    """Speed of each rounded twin over that of the first one, its standard error, its MACs over those of the first."""
    found = timed(cut, asked, asked.rounds)
    rows = {}
    for name in list(cut)[1:]:
        ratio, share = found[name]["ratio_to_dense"], macs[name] / macs[PLAIN]
        error = 1.25 / 1.35 * found[name]["ratio_iqr"] / found[name]["rounds"] ** 0.5
        speed = 1 / ratio if abs(share - 1) <= EQUAL else share / ratio
        rows[name] = {"speed": speed, "error": error / ratio**2, "macs": share}
    return rows


def main(arguments: list[str] | None = None) -> None:
    """Measure, print, write the result."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--model", default="deit_small_patch16_224")
    parser.add_argument("--plans", type=int, default=20)
    parser.add_argument("--rounds", type=int, default=21)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--dims", action="store_true")
    parser.add_argument("--out", type=Path, default=RESULT)
    asked = parser.parse_args(arguments)
    torch.set_num_threads(1)
    torch.manual_seed(0)
    model = timm.create_model(asked.model).eval()
    asked.image = torch.zeros(1, *model.pretrained_cfg["input_size"], device="meta")
    units = find_units(model, asked.image)
    tree = Tree(units)
    stated = conditions(torch.device("cpu"))
    measured = slowdowns(model, units, asked.image, partial(ratios, asked=asked))
    step = fast_step(measured)
    print(f"measured step: {step}", {size: round(slowdown, 3) for size, slowdown in measured.items()}, flush=True)
    steps = {f"multiples of {FIXED}": FIXED, f"measured step ({step})": step}
    kinds, rows = ("heads", "hidden", *(("qk_dims", "v_dims") if asked.dims else ())), []
    for seed in range(asked.plans):
        rng = np.random.default_rng(seed)
        groups = [g for g in units.groups.values() if g.kind in kinds]
        scores = {g.name: rng.normal(size=g.size) + rng.normal() / 3 for g in groups}
        limits = Limits(rng.uniform(0.35, 0.8) * tree.total)
        plans = {}
        for name, own in {PLAIN: 1, **steps}.items():
            projector = Projector(units, tree, scores, {}, rounded_sizes(units, scores, own))
            plans[name] = Plan(records=tuple(projector.project(limits).records))
        macs = {name: cost(units, plan).macs for name, plan in plans.items()}
        cut = {name: shrink(model, plan, asked.image, units=units) for name, plan in plans.items()}
        rows.append({"seed": seed, "macs": macs[PLAIN] / tree.total, "twins": compare(cut, macs, asked)})
        print(seed, json.dumps(rows[-1]["twins"]), flush=True)
    summary: dict[str, Any] = {}
    for name in steps:
        own = [row["twins"][name] for row in rows]
        speeds = [twin["speed"] for twin in own]
        summary[name] = {
            "plans": len(own),
            "median": statistics.median(speeds),
            "worst": min(speeds),
            "largest_error": max(twin["error"] for twin in own),
            "largest_macs_difference": max(abs(twin["macs"] - 1) for twin in own),
        }
        print(name, summary[name])
    stated |= {"model": asked.model, "batch_size": asked.batch, "rounds": asked.rounds, "threads": 1, "step": step}
    stated |= {"clock": "time.thread_time", "dtype": "float32", "slowdowns": measured, "kinds": kinds}
    asked.out.write_text(json.dumps({"conditions": stated, "summary": summary, "rows": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
