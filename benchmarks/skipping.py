"""What pruned and skipping forwards gain on the clock, as a share of what their MACs promise.

python benchmarks/skipping.py [--rounds 9] [--threads 1 2] [--batches 8 32] [--model deit_small_patch16_224]
                              [--device cuda] [--dtype bfloat16] [--compile]

Three fixed plans at half of the MACs, each with sizes as they come and in multiples of `--round-to`: heads and hidden
neurons in whole multiples, odd widths as a search leaves them, heads of unequal dims as UVC leaves them. Where it is
installed, Torch-Pruning's cut of the first plan. Then skipping at a mean rate of one half with a gate network in every
block: per sample, and for the whole batch. Beside these, at a batch of one, the same choices written out by hand: the
blocks' own norms and layers called for the branches that the gates chose, without gates or anything of usdcore. All in
one process, interleaved; gate networks' MACs and time are included. On CUDA, events on the stream are timed, after a
warm-up. With `--compile` the models without gates are also timed under torch.compile.
"""

from __future__ import annotations

import argparse
import contextlib
import copy
import json
import os
import time
import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # torch's profiler talks on stderr

import numpy as np
import timm
import torch
from torch import Tensor, nn

from usdcore.bench.measured import Wish, compare
from usdcore.bench.subjects import Subject
from usdcore.costs import Cost, Tree, cost
from usdcore.hooks import registry
from usdcore.latency import Timing
from usdcore.machine import conditions
from usdcore.plans import Keep, Plan
from usdcore.projection import Limits, Projector
from usdcore.runner import gating_of
from usdcore.session import Session
from usdcore.steps import rounded_sizes
from usdcore.strategy import Budget
from usdcore.surgery import shrink
from usdcore.units import find_units
from usdcore.units.types import Units

RESULT = Path(__file__).parent / "results" / "skipping.json"
SHARE = 0.5
#: What each kind of cut should reach of the ideal speed-up.
GOALS = {"whole": 0.95, "odd": 0.92, "ragged": 0.88, "sample 1": 0.95, "sample": 0.9, "batch": 0.97}
HAND = "by hand"


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
    tree = Tree(units)
    projector = Projector(units, tree, scores, {}, rounded_sizes(units, scores, step))
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


def static_subjects(dense: nn.Module, image: Tensor, step: int) -> list[Subject]:
    units = find_units(dense, image)
    dims = ("heads", "v_dims", "qk_dims", "hidden")
    plans = {"whole": whole(units)}
    for name, kinds in (("odd", ("heads", "hidden")), ("ragged", dims)):
        plans[name], plans[f"{name}, rounded"] = searched(units, kinds, 1), searched(units, kinds, step)
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

            def logits(pooled_BC: Tensor, head: nn.Module = head, own: Any = gate.logits) -> Tensor:
                found = own(pooled_BC)
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


class ByHand(nn.Module):
    """The dense model, with the branches that are `on` alone: as one would write it for one fixed choice.

    What it takes is as little as any skipping can take, gates aside.
    """

    def __init__(self, dense: nn.Module, on: dict[str, bool]) -> None:
        super().__init__()
        self.dense, self.on = dense, on

    def forward(self, x: Tensor) -> Tensor:
        model = self.dense
        x = model.norm_pre(model.patch_drop(model._pos_embed(model.patch_embed(x))))
        for number, block in enumerate(model.blocks):
            if self.on[f"blocks.{number}.attn"]:
                x = x + block.attn(block.norm1(x))
            if self.on[f"blocks.{number}.mlp"]:
                x = x + block.mlp(block.norm2(x))
        return model.forward_head(model.norm(x))


def by_hand(dense: nn.Module, gated_model: nn.Module, image: Tensor, first: Subject) -> Subject:
    """What the gates choose for one image, without them. Errors: other logits than theirs."""
    gating = gating_of(gated_model)
    assert gating is not None
    logits = gated_model(image)
    on = {name: bool(keep.all()) for name, keep in gating.state.dynamic.items()}
    model = ByHand(dense, on).eval()
    torch.testing.assert_close(model(image), logits, rtol=1e-5, atol=1e-5)
    macs = Tree(first.units).decided({name: int(is_on) for name, is_on in on.items()})
    return Subject("", model, first.units, Cost(macs, first.cost.params))


def measure(asked: argparse.Namespace) -> list[dict[str, Any]]:
    """Rows of all models, printed as they come."""
    torch.manual_seed(0)
    dense = timm.create_model(asked.model).eval()
    images = torch.randn(max(*asked.batches, 32), 3, *dense.patch_embed.img_size)
    image, rows = images[:1], []
    first = subject("dense", dense, image)
    pruned = static_subjects(dense, image, asked.round_to)
    skipping, one = [], []
    for scope in ("sample", "batch"):
        model = gated(dense, images[:32], scope)
        skipping.append(Subject(f"{scope} gates", model, first.units, first.cost, gating_of(model)))
        one += [skipping[-1], replace(by_hand(dense, model, image, first), name=f"{scope} gates, {HAND}")]
    for threads in asked.threads:
        # On one thread, the processor's time: others at work disturb it less than the clock on the wall.
        clock = time.thread_time if threads == 1 else time.perf_counter
        timing = Timing(asked.rounds, threads=threads, device=asked.device, clock=clock)
        jobs = [
            (pruned, images, tuple(asked.batches), False),
            (one, image, (1,), False),
            (skipping, images, (32,), False),
        ]
        jobs += [(pruned, images, tuple(asked.batches), True)] if asked.compile else []
        for subjects, given, sizes, is_compiled in jobs:
            for row in compare([first, *subjects], given, Wish(sizes, timing), asked.dtype, is_compiled):
                if row["model"] != "dense":
                    rows.append(row | {"goal": goal(row)})
                print(threads, row["batch_size"], row["model"], "compiled" * is_compiled, end=" ")
                print(f"{row['median_ms']:.1f} ms {row['macs_ratio']:.3f} {row['time_ratio']:.3f}", end=" ")
                print(f"{row['share_of_ideal']:.3f}", row["cause"] or "", flush=True)
    return rows


def goal(row: dict[str, Any]) -> float | None:
    """Of the share of the ideal speed-up; None for what is there to compare with."""
    kind = row["model"].partition(",")[0].partition(" ")[0]
    return None if HAND in row["model"] else GOALS.get(f"{kind} {row['batch_size']}", GOALS[kind])


def main(arguments: list[str] | None = None) -> None:
    """Measure, print, write the result."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--model", default="deit_small_patch16_224")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--batches", type=int, nargs="+", default=[8, 32])
    parser.add_argument("--round-to", type=int, default=32)
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--dtype", choices=["float32", "bfloat16"], default="float32")
    parser.add_argument("--compile", action="store_true")
    parser.add_argument("--out", type=Path, default=RESULT)
    asked = parser.parse_args(arguments)
    stated = conditions(torch.device(asked.device)) | {"model": asked.model, "rounds": asked.rounds}
    stated |= {"dtype": asked.dtype, "device": asked.device, "round_to": asked.round_to}
    with torch.no_grad():
        rows = measure(asked)
    asked.out.write_text(json.dumps({"conditions": stated, "rows": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
