"""What pruned and skipping forwards gain on the clock, as a share of what their MACs promise.

python benchmarks/skipping.py [--rounds 9] [--threads 1 2] [--batches 8 32] [--model deit_small_patch16_224]

Three fixed plans at half of the MACs, each with hidden widths as they come and as multiples of 32: heads and hidden
neurons in whole multiples, odd widths as a search leaves them, heads of unequal dims as UVC leaves them. Where it is
installed, Torch-Pruning's cut of the first plan. Then skipping at a mean rate of one half with a gate network in every
block: per sample, and for the whole batch. All in one process, interleaved; gate networks' MACs and time are included.
"""

from __future__ import annotations

import argparse
import contextlib
import copy
import json
import os
import time
import warnings
from pathlib import Path
from typing import Any

os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # torch's profiler talks on stderr

import numpy as np
import timm
import torch
from torch import Tensor, nn

from usdcore.bench.measured import Wish, compare
from usdcore.bench.subjects import Subject
from usdcore.costs import Tree, cost
from usdcore.hooks import registry
from usdcore.latency import Timing
from usdcore.machine import conditions
from usdcore.plans import Keep, Plan
from usdcore.projection import Limits, Projector
from usdcore.runner import gating_of
from usdcore.session import Session
from usdcore.strategy import Budget
from usdcore.surgery import shrink
from usdcore.units import find_units
from usdcore.units.types import Units

RESULT = Path(__file__).parent / "results" / "skipping.json"
SHARE, STEP = 0.5, 32
#: What each kind of cut should reach of the ideal speed-up.
GOALS = {"whole": 0.95, "odd": 0.92, "ragged": 0.88, "sample 1": 0.95, "sample": 0.9, "batch": 0.97}


def subject(name: str, model: nn.Module, image: Tensor) -> Subject:
    units = find_units(model, image)
    return Subject(name, model, units, cost(units))


def whole(units: Units) -> Plan:
    """Half of the heads and of the neurons of every layer."""
    groups = [g for g in units.groups.values() if g.kind in ("heads", "hidden")]
    return Plan(records=tuple(Keep(group=g.name, indices=tuple(range(g.size // 2))) for g in groups))


def searched(units: Units, kinds: tuple[str, ...], step: int) -> Plan:
    """What a projection of random scores leaves, as uneven over layers as a search's."""
    rng, scores = np.random.default_rng(0), {}
    for group in units.groups.values():
        if group.kind in kinds:
            scores[group.name] = rng.normal(size=group.size) + rng.normal() / 3
    hidden = {g.name: (*range(step, g.size, step), g.size) for g in units.groups.values() if g.kind == "hidden"}
    tree = Tree(units)
    projector = Projector(units, tree, scores, {}, hidden if step > 1 else {})
    return Plan(records=tuple(projector.project(Limits(SHARE * tree.total)).records))


def peer(model: nn.Module, image: Tensor) -> nn.Module:
    """Torch-Pruning's cut to the shapes of `whole`, with the attributes mended that it leaves to its user."""
    import torch_pruning

    with torch.enable_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        graph = torch_pruning.DependencyGraph().build_dependency(model, example_inputs=image)
    cut = torch_pruning.prune_linear_out_channels
    for block in model.blocks:
        hidden, attn = block.mlp.fc1.out_features, block.attn
        graph.get_pruning_group(block.mlp.fc1, cut, list(range(hidden // 2, hidden))).prune()
        width, heads = attn.qkv.out_features // 3, attn.num_heads // 2
        gone = [part * width + i for part in range(3) for i in range(heads * attn.head_dim, width)]
        graph.get_pruning_group(attn.qkv, cut, gone).prune()
        attn.num_heads, attn.attn_dim = heads, attn.qkv.out_features // 3
    return model


def static_subjects(dense: nn.Module, image: Tensor) -> list[Subject]:
    units = find_units(dense, image)
    dims = ("heads", "v_dims", "qk_dims", "hidden")
    plans = {"whole": whole(units)}
    for name, kinds in (("odd", ("heads", "hidden")), ("ragged", dims)):
        plans[name], plans[f"{name}, rounded"] = searched(units, kinds, 1), searched(units, kinds, STEP)
    found = [subject(name, shrink(dense, plan, image, units=units), image) for name, plan in plans.items()]
    with contextlib.suppress(ImportError):
        found.append(subject("whole, Torch-Pruning", peer(copy.deepcopy(dense), image), image))
    return found


def gated(dense: nn.Module, images: Tensor, scope: str) -> nn.Module:
    """Gates that run each branch for half of the images, or half of the branches for all."""
    session = Session(copy.deepcopy(dense), images[:1], Budget("macs", SHARE, len(images)))
    config = registry().config("strategy", "usdc-dynamic")
    options = config.model_validate({"use": "usdc-dynamic", "gate_network": "G4"})
    session.begin_phase([registry().load("strategy", "usdc-dynamic")(options)])
    gating = session.gating
    assert gating is not None
    for number, gate in enumerate(gating.all()):
        (network,) = gate.networks.values()
        gate.scope, head = scope, network.head
        if scope == "sample":
            nn.init.normal_(head.weight)

            def logits(x_BNC: Tensor, head: nn.Module = head, own: Any = gate.logits) -> Tensor:
                found = own(x_BNC)
                middle = found.median(dim=0).values
                head.bias.data -= middle
                return found - middle

            gate.__dict__["logits"] = logits
        else:
            nn.init.zeros_(head.weight)
            head.bias.data.copy_(torch.tensor([1.0, -1.0] if number % 2 else [-1.0, 1.0]))
    with torch.no_grad():
        session.model.eval()(images)
    for gate in gating.all():
        gate.__dict__.pop("logits", None)
    return session.model


def measure(asked: argparse.Namespace) -> list[dict[str, Any]]:
    torch.manual_seed(0)
    dense = timm.create_model(asked.model).eval()
    size = dense.patch_embed.img_size
    images = torch.randn(max(*asked.batches, 32), 3, *size)
    image, rows = images[:1], []
    first = subject("dense", dense, image)
    pruned = static_subjects(dense, image)
    skipping = []
    for scope in ("sample", "batch"):
        model = gated(dense, images[:32], scope)
        skipping.append(Subject(f"{scope} gates", model, first.units, first.cost, gating_of(model)))
    for threads in asked.threads:
        # On one thread, the processor's time: others at work disturb it less than the clock on the wall.
        timing = Timing(asked.rounds, threads=threads, clock=time.thread_time if threads == 1 else time.perf_counter)
        for subjects, sizes in ((pruned, asked.batches), (skipping, [1, 32])):
            for row in compare([first, *subjects], images, Wish(tuple(sizes), timing)):
                if row["model"] != "dense":
                    rows.append(row | {"goal": goal(row)})
                print(threads, row["batch_size"], row["model"], f"{row['median_ms']:.1f} ms", end=" ")
                print(
                    f"{row['macs_ratio']:.3f} {row['time_ratio']:.3f} {row['share_of_ideal']:.3f}", row["cause"] or ""
                )
    return rows


def goal(row: dict[str, Any]) -> float:
    kind = row["model"].partition(",")[0].partition(" ")[0]
    return GOALS.get(f"{kind} {row['batch_size']}", GOALS[kind])


def main() -> None:
    """Measure, print, write the result."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--model", default="deit_small_patch16_224")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--batches", type=int, nargs="+", default=[8, 32])
    parser.add_argument("--out", type=Path, default=RESULT)
    asked = parser.parse_args()
    torch.set_grad_enabled(False)
    stated = conditions(torch.device("cpu")) | {"model": asked.model, "rounds": asked.rounds, "dtype": "float32"}
    rows = measure(asked)
    asked.out.write_text(json.dumps({"conditions": stated, "rows": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
