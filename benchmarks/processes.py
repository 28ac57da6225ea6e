"""One recipe with one, two and four processes: how far losses and weights are apart, whether the plan is the same.

OMP_NUM_THREADS=1 python benchmarks/processes.py
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from safetensors.torch import load_file

from usdcore.artifact import read_plan

BASE = """
name: processes
model: {name: vit_tiny_patch16_224, num_classes: 10, kwargs: {patch_size: 4, embed_dim: 32, depth: 2, num_heads: 2}}
data: {source: digits, input_size: 8, batch_size: 128, augment: shift}
budget: {macs: 0.7, batch_size: 32}
seed: 3
threads: 1
train: {lr: 2.0e-3, clip_grad: 1.0, ema: 0.9, mixup: 0.2, optimizer_state: carry}
phases:
  - {name: dense, epochs: 2}
  - {name: search, epochs: 6, strategies: STRATEGIES}
  - {name: finetune, epochs: 2, strategies: [{use: distill, teacher: dense}]}
evaluate: {batch_sizes: [32], calibration_images: 256}
latency: {batch_sizes: [1], repeats: 1}
"""
SEARCHES = {
    "usdc-static, distill": "[{use: usdc-static, lr: 0.05, ramp: 0.5}, {use: distill, teacher: dense}]",
    "uvc": "[{use: uvc, within: 0.5}]",
    "prune by taylor": "[{use: prune, importance: taylor}]",
}


def run(recipe: Path, out: Path, processes: int) -> None:
    """Under torchrun. Exit code 3 (a search this short misses its budget) is a finished run too."""
    launcher = str(Path(sys.executable).with_name("torchrun"))
    command = [launcher, "--standalone", "--nproc_per_node", str(processes), "-m", "usdcore", "run", str(recipe)]
    subprocess.run([*command, "--out", str(out)], capture_output=True, check=False, env=os.environ)
    assert (out / "result.json").is_file(), " ".join(command)


def epochs(out: Path) -> list[dict[str, Any]]:
    """The mean losses of each epoch."""
    lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    leave = ("time", "stage", "epoch", "images_per_second")
    return [{k: v for k, v in line.items() if k not in leave} for line in lines if "stage" in line]


def compare(one: Path, several: Path) -> str:
    """In words."""
    pairs = [(a[k], b[k]) for a, b in zip(epochs(one), epochs(several), strict=True) for k in a]
    apart = max(abs(a - b) / max(abs(a), 1e-3) for a, b in pairs)
    plans = [read_plan(out / "model.safetensors").records for out in (one, several)]
    weights = [load_file(out / "model.safetensors") for out in (one, several)]
    same = plans[0] == plans[1]
    largest = max(float((weights[0][k] - weights[1][k]).abs().max()) for k in weights[0]) if same else float("nan")
    return f"{apart:.1e} | {largest:.1e} | {'the same' if same else 'another'}"


def main() -> None:
    """Print the rows of docs/processes.md."""
    print("| search | processes | losses, largest relative difference | weights, largest difference | plan |")
    for name, strategies in SEARCHES.items():
        with tempfile.TemporaryDirectory() as place:
            recipe = Path(place) / "recipe.yaml"
            recipe.write_text(BASE.replace("STRATEGIES", strategies))
            for processes in (1, 2, 4):
                run(recipe, Path(place) / str(processes), processes)
                if processes > 1:
                    found = compare(Path(place) / "1", Path(place) / str(processes))
                    print(f"| {name} | {processes} | {found} |", flush=True)


if __name__ == "__main__":
    main()
