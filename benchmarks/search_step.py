"""What a search step costs beside a plain training step: same model, same batch, interleaved. And where the time goes.

python benchmarks/search_step.py [--model deit_tiny_patch16_224] [--batch 32] [--rounds 11] [--threads 1] [--device cpu]
"""

from __future__ import annotations

import argparse
import copy
import datetime
import itertools
import json
import platform
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import timm
import torch
from torch import Tensor, nn

from usdcore.hooks import registry
from usdcore.runner import CHILD
from usdcore.session import Session
from usdcore.strategy import Budget, Strategy

#: The step that is timed stands well within the phase, so that warm-ups and ramps are over.
STEP, STEPS = 500, 1000
LR = 1e-4
CONTENDERS: dict[str, list[dict[str, Any]]] = {
    "plain": [],
    "uvc": [{"use": "uvc"}],
    "uvc faithful": [{"use": "uvc", "faithful": True}],
    "usdc joint": [{"use": "usdc-static"}, {"use": "usdc-dynamic"}],
    "uvc with distill": [{"use": "uvc"}, {"use": "distill"}],
}
PARTS = ("strategies before", "forward", "strategies' losses", "backward", "optimizer", "strategies after")


class Contender:
    """One way to train: a session with its strategies, and the optimizers that an ordinary loop has."""

    def __init__(self, model: nn.Module, strategies: list[dict[str, Any]], images: Tensor) -> None:
        self.session = Session(model, images[:1], Budget("macs", 0.5, len(images)))
        self.session.begin_phase([_strategy(options) for options in strategies])
        own = [p for name, p in self.session.model.named_parameters() if not name.startswith(f"{CHILD}.")]
        self.optimizer = torch.optim.AdamW(own, lr=LR)
        groups = [{"params": g.parameters, "lr": g.lr or LR} for g in self.session.parameter_groups if g.parameters]
        self.gates = torch.optim.AdamW(groups) if groups else None
        self.session.model.train()

    def step(self, images: Tensor, target: Tensor, sync: Callable[[], None]) -> list[float]:
        """Seconds of each part of one step."""
        session, times = self.session, [_now(sync)]
        session.begin_step(STEP, STEPS, images=images, lr=LR)
        times.append(_now(sync))
        output = session.model(images)
        times.append(_now(sync))
        loss = session.task_weight * nn.functional.cross_entropy(output, target) + session.loss(output, target)
        times.append(_now(sync))
        self.optimizer.zero_grad()
        if self.gates:
            self.gates.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(session.model.parameters(), 1.0)
        session.after_backward()
        times.append(_now(sync))
        self.optimizer.step()
        if self.gates:
            self.gates.step()
        times.append(_now(sync))
        session.after_step()
        times.append(_now(sync))
        return [after - before for before, after in itertools.pairwise(times)]


def measure(asked: argparse.Namespace) -> dict[str, Any]:
    """Medians over interleaved rounds after two warm-up rounds; ratios are medians of ratios within a round."""
    device = torch.device(asked.device)
    torch.manual_seed(0)
    model = timm.create_model(asked.model).to(device)
    size = model.patch_embed.img_size[0]
    images = torch.randn(asked.batch, 3, size, size, device=device)
    target = torch.randint(1000, (asked.batch,), device=device)
    sync = torch.cuda.synchronize if device.type == "cuda" else _nothing
    runs = {name: Contender(copy.deepcopy(model), options, images) for name, options in CONTENDERS.items()}
    parts: dict[str, list[list[float]]] = {name: [] for name in runs}
    for round_ in range(asked.rounds + 2):
        for name, run in runs.items():
            found = run.step(images, target, sync)
            if round_ > 1:
                parts[name].append(found)
    whole = {name: [sum(row) for row in rows] for name, rows in parts.items()}
    return {
        name: {
            "seconds": statistics.median(whole[name]),
            "ratio_to_plain": statistics.median(a / b for a, b in zip(whole[name], whole["plain"], strict=True)),
            "parts": {part: statistics.median(row[i] for row in parts[name]) for i, part in enumerate(PARTS)},
        }
        for name in runs
    }


def main() -> None:
    """Measure, print a table, write the result."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--model", default="deit_tiny_patch16_224")
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--rounds", type=int, default=11)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/search_step.json"))
    asked = parser.parse_args()
    torch.set_num_threads(asked.threads)
    found = measure(asked)
    print(f"{'':18} {'ratio':>6} {'ms':>8}  " + "  ".join(f"{part:>18}" for part in PARTS))
    for name, row in found.items():
        cells = "  ".join(f"{1e3 * row['parts'][part]:18.2f}" for part in PARTS)
        print(f"{name:18} {row['ratio_to_plain']:6.3f} {1e3 * row['seconds']:8.1f}  {cells}")
    conditions = {
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "model": asked.model,
        "batch": asked.batch,
        "rounds": asked.rounds,
        "threads": asked.threads,
        "device": torch.cuda.get_device_name() if asked.device == "cuda" else platform.machine(),
        "torch": torch.__version__,
        "timm": timm.__version__,
        "python": platform.python_version(),
    }
    asked.out.write_text(json.dumps({"conditions": conditions, "steps": found}, indent=1) + "\n")


def _strategy(options: dict[str, Any]) -> Strategy:
    config = registry().config("strategy", options["use"]).model_validate(options)
    made: Strategy = registry().load("strategy", options["use"])(config)
    return made


def _now(sync: Callable[[], None]) -> float:
    sync()
    return time.perf_counter()


def _nothing() -> None:
    """The CPU has nothing to wait for."""


if __name__ == "__main__":
    main()
