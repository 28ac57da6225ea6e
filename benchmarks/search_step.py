"""What a search step costs beside a plain training step, in time and memory: same model, same batch, interleaved.

python benchmarks/search_step.py [--models deit_tiny_patch16_224 deit_small_patch16_224] [--batch 8] [--rounds 5]
                                 [--threads 1] [--device cpu] [--only "plain" "uvc" ...] [--compile]

With --compile each of them is measured a second time, with forward and backward under torch.compile (`train.compile`);
compiling is no part of a step's time, and takes minutes.

On the CPU, with one thread, time is that of the thread, which another process takes little of; memory is what is kept
for the backward pass. On CUDA, time is the clock's and memory the peak of what is allocated within a step. Operations
are those that torch dispatches in a step (without views), which no machine's noise changes.
"""

from __future__ import annotations

import argparse
import copy
import itertools
import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import timm
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from usdcore.compiled import CompiledForward
from usdcore.hooks import registry
from usdcore.machine import conditions
from usdcore.runner import CHILD
from usdcore.session import Session
from usdcore.strategy import Budget, Strategy

#: The step that is timed stands well within the phase, so that warm-ups and ramps are over and networks are searched.
STEP, STEPS = 500, 1000
LR = 1e-4
STATIC, DYNAMIC, UVC = {"use": "usdc-static"}, {"use": "usdc-dynamic"}, {"use": "uvc"}
DISTILL = {"use": "distill"}
CONTENDERS: dict[str, list[dict[str, Any]]] = {
    "plain": [],
    "usdc-static": [STATIC],
    "usdc-dynamic, 9 networks searched": [DYNAMIC],
    "usdc-static and usdc-dynamic": [STATIC, DYNAMIC],
    "uvc": [UVC],
    "distill": [DISTILL],
    "uvc and distill": [UVC, DISTILL],
    "dynamicvit": [{"use": "dynamicvit", "keep_ratio": 0.7}],
    "adavit": [{"use": "adavit", "target": 0.7}],
}
COMPILED = ", compiled"
PARTS = ("strategies before", "forward", "losses", "backward", "optimizer", "strategies after")
Clock = Callable[[], float]


class Contender:
    """One way to train: a session with its strategies, and the optimizers that an ordinary loop has."""

    def __init__(self, model: nn.Module, strategies: list[dict[str, Any]], images: Tensor, compiles: bool) -> None:
        scope = "sample" if any(options["use"] == "adavit" for options in strategies) else "batch"
        self.session = Session(model, images[:1], Budget("macs", 0.7, len(images), scope))
        self.session.begin_phase([_strategy(options) for options in strategies])
        own = [p for name, p in self.session.model.named_parameters() if not name.startswith(f"{CHILD}.")]
        self.optimizer = torch.optim.AdamW(own, lr=LR)
        groups = [{"params": g.parameters, "lr": g.lr or LR} for g in self.session.parameter_groups if g.parameters]
        self.gates = torch.optim.AdamW(groups) if groups else None
        self.session.model.train()
        self.forward = CompiledForward(self.session.model, say=self._say) if compiles else self.session.model

    def loss(self, images: Tensor, target: Tensor) -> Tensor:
        """Of one forward."""
        output = self.forward(images)
        task = self.session.task_weight * nn.functional.cross_entropy(output, target)
        return task + self.session.loss(output, target)

    def step(self, images: Tensor, target: Tensor, now: Clock) -> list[float]:
        """Seconds of each part of one step."""
        session, times = self.session, [now()]
        session.begin_step(STEP, STEPS, images=images, lr=LR)
        times.append(now())
        output = self.forward(images)
        times.append(now())
        loss = session.task_weight * nn.functional.cross_entropy(output, target) + session.loss(output, target)
        times.append(now())
        loss.backward()
        nn.utils.clip_grad_norm_(session.model.parameters(), 1.0)
        session.after_backward()
        times.append(now())
        self.optimizer.step()
        if self.gates:
            self.gates.step()
        times.append(now())
        session.after_step()
        times.append(now())
        for parameter in session.model.parameters():  # of all contenders' gradients only one's are there at a time
            parameter.grad = None
        return [after - before for before, after in itertools.pairwise(times)]

    def kept_bytes(self, images: Tensor, target: Tensor) -> int:
        """What a forward keeps for the backward pass, parameters not counted."""
        own = {p.untyped_storage().data_ptr() for p in self.session.model.parameters()}
        kept: list[Tensor] = []  # all at once, as storage that is freed is used again

        def pack(tensor: Tensor) -> Tensor:
            kept.append(tensor)
            return tensor

        self.session.begin_step(STEP, STEPS, images=images, lr=LR)
        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            self.loss(images, target)
        storages = {t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in kept}
        return sum(size for place, size in storages.items() if place not in own)

    def peak_bytes(self, images: Tensor, target: Tensor) -> int:
        """The most that is allocated at once in a step on CUDA, above what is there before it."""
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        self.step(images, target, time.perf_counter)
        return torch.cuda.max_memory_allocated() - before

    def operations(self, images: Tensor, target: Tensor) -> int | None:
        """How many operations torch dispatches in a step, optimizers included, views left out; None where it dispatches
        compiled ones.
        """
        if self.forward is not self.session.model:
            return None
        with _Count() as count:
            self.step(images, target, time.perf_counter)
        return count.number

    def _say(self, text: str) -> None:
        names = ", ".join(strategy.config.use for strategy in self.session.strategies) or "plain"
        print(f"{names}: {text}", flush=True)


class _Count(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()
        self.number = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.number += not func.is_view
        return func(*args, **(kwargs or {}))


def measure(name: str, asked: argparse.Namespace) -> list[dict[str, Any]]:
    """Medians over interleaved rounds after one of warm-up; ratios are medians of ratios within a round."""
    device = torch.device(asked.device)
    torch.manual_seed(0)
    model = timm.create_model(name).to(device)
    size = model.patch_embed.img_size[0]
    images = torch.randn(asked.batch, 3, size, size, device=device)
    target = torch.randint(1000, (asked.batch,), device=device)
    now = _clock(device, asked.threads)
    chosen = {way: CONTENDERS[way] for way in dict.fromkeys(["plain", *asked.only])}
    runs = {way: Contender(copy.deepcopy(model), options, images, False) for way, options in chosen.items()}
    if asked.compile:
        runs |= {
            way + COMPILED: Contender(copy.deepcopy(model), options, images, True) for way, options in chosen.items()
        }
    parts: dict[str, list[list[float]]] = {way: [] for way in runs}
    for round_ in range(asked.rounds + 1):
        for way, run in runs.items():
            found = run.step(images, target, now)
            if round_ > 0:
                parts[way].append(found)
    whole = {way: [sum(row) for row in rows] for way, rows in parts.items()}
    memory = {
        way: run.peak_bytes(images, target) if device.type == "cuda" else run.kept_bytes(images, target)
        for way, run in runs.items()
    }
    return [
        {
            "model": name,
            "strategies": way,
            "seconds": statistics.median(whole[way]),
            "ratio_to_plain": statistics.median(a / b for a, b in zip(whole[way], whole["plain"], strict=True)),
            "memory_bytes": memory[way],
            "memory_ratio_to_plain": memory[way] / memory["plain"],
            **_compiling(way, run, whole),
            "operations": run.operations(images, target),
            "parts": {part: statistics.median(row[i] for row in parts[way]) for i, part in enumerate(PARTS)},
        }
        for way, run in runs.items()
    ]


def _compiling(way: str, run: Contender, whole: dict[str, list[float]]) -> dict[str, Any]:
    """What a compiled contender has beside the others. Errors: it was not compiled after all."""
    if isinstance(run.forward, nn.Module):
        return {}
    if run.forward.reason is not None:
        raise RuntimeError(f"{way}: {run.forward.reason}")
    own = whole[way.removesuffix(COMPILED)]
    ratio = statistics.median(a / b for a, b in zip(whole[way], own, strict=True))
    return {"ratio_to_not_compiled": ratio, "compilations": run.forward.compilations}


def main() -> None:
    """Measure, print a table, write the result."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--models", nargs="+", default=["deit_tiny_patch16_224", "deit_small_patch16_224"])
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--only", nargs="+", choices=list(CONTENDERS), default=list(CONTENDERS))
    parser.add_argument("--compile", action="store_true")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/search_step.json"))
    asked = parser.parse_args()
    torch.set_num_threads(asked.threads)
    stated = {**conditions(torch.device(asked.device)), **{key: getattr(asked, key) for key in ("batch", "rounds")}}
    stated |= {"threads": asked.threads, "clock": _clock(torch.device(asked.device), asked.threads).__name__}
    rows = []
    for name in asked.models:
        found = measure(name, asked)
        rows += found
        print(f"{name:44} {'time':>6} {'memory':>6} {'ops':>6} {'ms':>8}  " + "  ".join(f"{p:>17}" for p in PARTS))
        for row in found:
            cells = "  ".join(f"{1e3 * row['parts'][part]:17.2f}" for part in PARTS)
            ratios = f"{row['ratio_to_plain']:6.3f} {row['memory_ratio_to_plain']:6.3f} {row['operations'] or '-':>6}"
            print(f"{row['strategies']:44} {ratios} {1e3 * row['seconds']:8.1f}  {cells}", flush=True)
    asked.out.write_text(json.dumps({"conditions": stated, "rows": rows}, indent=1) + "\n")


def _strategy(options: dict[str, Any]) -> Strategy:
    config = registry().config("strategy", options["use"]).model_validate(options)
    made: Strategy = registry().load("strategy", options["use"])(config)
    return made


def _clock(device: torch.device, threads: int) -> Clock:
    """Of this thread where it does all the work, else of the wall."""
    if device.type == "cuda":
        return _after_the_device
    return time.thread_time if threads == 1 else time.perf_counter


def _after_the_device() -> float:
    torch.cuda.synchronize()
    return time.perf_counter()


if __name__ == "__main__":
    main()
