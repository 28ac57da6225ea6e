"""Finding what can be pruned, and pruning it, beside Torch-Pruning in the same run: same models, same cut, one thread.

    pip install torch-pruning==1.6.1
    python benchmarks/discovery.py [MODEL ...] [--rounds 7] [--out benchmarks/results/discovery.json]

The cut: half of the heads and half of the hidden neurons of every block, ranked by L2 magnitude; the stream's width
stays. Torch-Pruning is told which layers are attention projections and how many heads they have, and what to leave
alone; afterwards `num_heads` and `attn_dim` are set by hand, as its result does not run without (that is not timed).
"""

from __future__ import annotations

import argparse
import copy
import datetime
import json
import os
import platform
import statistics
import sys
import time
import warnings
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

import timm
import torch
from torch import Tensor, nn

import usdcore
from usdcore.plans import Keep, Plan
from usdcore.surgery import shrink_found
from usdcore.units import find_units
from usdcore.units.types import Units
from usdcore_prune.importance import Entries, norms

try:
    import torch_pruning
except ImportError:
    sys.exit("this benchmark compares with Torch-Pruning: pip install torch-pruning==1.6.1")

MODELS = ("deit_small_patch16_224", "vit_large_patch16_224")
WARM_UPS = 1


def plan_of(model: nn.Module, units: Units) -> Plan:
    """Half of the heads and neurons, those of the largest L2 norm."""
    records = []
    for group in units.groups.values():
        if group.kind in ("heads", "hidden") and group.reason is None:
            best = norms(Entries.of(model, group), 2).topk(group.size // 2).indices
            records.append(Keep(group=group.name, indices=tuple(sorted(best.tolist()))))
    return Plan(records=tuple(records))


def ours(model: nn.Module, image: Tensor) -> nn.Module:
    """Find, rank, cut."""
    units = find_units(model, image)
    small: nn.Module = usdcore.shrink(model, plan_of(model, units), image, units=units)
    return small


def ours_found(model: nn.Module, image: Tensor) -> nn.Module:
    """The same as a run does it, which needs the units of what is left too."""
    units = find_units(model, image)
    return shrink_found(model, units, plan_of(model, units), image)[0]


def ours_typed(model: nn.Module, image: Tensor) -> nn.Module:
    """The same where `shrink` is not given the units, and finds them again."""
    small: nn.Module = usdcore.shrink(model, plan_of(model, find_units(model, image)), image)
    return small


def theirs(model: nn.Module, image: Tensor) -> nn.Module:
    """Torch-Pruning's pruner, made and stepped; prunes in place."""
    attention = [m for m in model.modules() if hasattr(m, "qkv")]
    pruner = torch_pruning.pruner.BasePruner(
        model,
        image,
        importance=torch_pruning.importance.GroupMagnitudeImportance(p=2),
        pruning_ratio=0.0,
        pruning_ratio_dict={m.fc1: 0.5 for m in model.modules() if hasattr(m, "fc1")} | {m.qkv: 0.5 for m in attention},
        num_heads={m.qkv: m.num_heads for m in attention},
        prune_num_heads=True,
        prune_head_dims=False,
        head_pruning_ratio=0.5,
        ignored_layers=[model.head],
        out_channel_groups={},  # its default is shared between pruners
    )
    pruner.step()
    return model


def their_graph(model: nn.Module, image: Tensor) -> object:
    """Torch-Pruning's graph of dependencies, which finds no units."""
    return torch_pruning.DependencyGraph().build_dependency(model, example_inputs=image)


def repaired(model: nn.Module) -> nn.Module:
    """What Torch-Pruning leaves to its user."""
    for module in model.modules():
        if hasattr(module, "qkv"):
            module.attn_dim = module.qkv.out_features // 3
            module.num_heads = module.attn_dim // module.head_dim
    return model


def measure(name: str, rounds: int) -> dict[str, Any]:
    """Processor seconds by contender over interleaved rounds, each on a fresh copy; ratios within a round. (On one
    thread that is the time on the clock of an idle machine; others at work change it less.)
    """
    torch.manual_seed(0)
    model, image = timm.create_model(name).eval(), torch.randn(1, 3, 224, 224)
    runs: dict[str, dict[str, Callable[[nn.Module, Tensor], object]]] = {
        "discovery": {"usdcore.find_units": find_units, "Torch-Pruning build_dependency": their_graph},
        "discovery, ranking and surgery": {
            "usdcore": ours,
            "usdcore, with the units of what is left": ours_found,
            "usdcore, units found twice": ours_typed,
            "Torch-Pruning init and step": theirs,
        },
    }
    result: dict[str, Any] = {"model": name, "params": sum(p.numel() for p in model.parameters())}
    result["params left"] = {
        label: sum(p.numel() for p in _checked(run(copy.deepcopy(model), image), image).parameters())
        for label, run in runs["discovery, ranking and surgery"].items()
    }
    times: dict[str, dict[str, list[float]]] = {task: {label: [] for label in own} for task, own in runs.items()}
    for round_ in range(rounds + WARM_UPS):
        for task, own in runs.items():
            for label, run in own.items():
                copied = copy.deepcopy(model)
                started = time.process_time()
                run(copied, image)
                if round_ >= WARM_UPS:
                    times[task][label].append(time.process_time() - started)
    for task, found in times.items():
        *_, theirs_ = found.values()
        result[task] = {
            label: {
                "median": statistics.median(seconds),
                "min": min(seconds),
                "max": max(seconds),
                "times faster than Torch-Pruning": statistics.median(
                    a / b for a, b in zip(theirs_, seconds, strict=True)
                ),
            }
            for label, seconds in found.items()
        }
    return result


def _checked(model: Any, image: Tensor) -> nn.Module:
    """The pruned model runs."""
    with torch.no_grad():
        assert repaired(model)(image).shape == (1, 1000)
    pruned: nn.Module = model
    return pruned


def main() -> None:
    """Measure, print, write the result."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("models", nargs="*")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "discovery.json")
    asked = parser.parse_args()
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    result = {
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "torch": torch.__version__,
        "timm": timm.__version__,
        "torch-pruning": version("torch-pruning"),
        "python": platform.python_version(),
        "machine": f"{platform.machine()}, {os.cpu_count()} cores, load {os.getloadavg()[0]:.1f} at the start",
        "threads": 1,
        "seconds": "of the processor",
        "rounds": asked.rounds,
        "models": [measure(name, asked.rounds) for name in asked.models or MODELS],
    }
    text = json.dumps(result, indent=1)
    print(text)
    asked.out.write_text(text + "\n")


if __name__ == "__main__":
    main()
