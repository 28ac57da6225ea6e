"""An ablation of seconds, results that nobody ran, and a run's evaluation in this process instead of a new one."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from usdcore.ablate.jobs import Jobs, plan_jobs
from usdcore.ablate.loading import Table, at_scale, read_ablation
from usdcore.engine.assess import Assessor
from usdcore.engine.finish import Finish
from usdcore.recipe import recipe_sha256

BASE = """\
name: small
model: {name: vit_tiny_patch16_224, num_classes: 10, kwargs: {patch_size: 4, embed_dim: 32, depth: 2, num_heads: 2}}
data: {source: digits, input_size: 8, batch_size: 128}
budget: {macs: 0.7, batch_size: 32}
seed: 7
threads: 1
train: {lr: 2.0e-3}
phases:
  - {name: dense, epochs: 2}
  - {name: search, epochs: 2, train: {sched: none}, strategies: [{use: prune, importance: l2}]}
  - {name: finetune, epochs: 1}
evaluate: {batch_sizes: [1, 32], calibration_images: 64}
latency: {batch_sizes: [1], repeats: 1}
"""

ABLATION = """\
name: small-table
title: A small table
paper: {cite: "Nobody, Table 1", data: ImageNet-1K}
report: [params, macs, executed_macs, top1, top1@1]
seeds: [0]
scales:
  own:
    base: base.yaml
    data: digits
  papers:
    base: base.yaml
    data: digits
    is_papers: true
    seeds: [0, 1, 2]
rows:
  - name: dense
    model: dense
    paper: {macs: 100000, top1: 90.5}
  - name: magnitude
    paper: {executed_macs: 3.0e+9, top1: 80.25}
  - name: Taylor
    set: {phases.search.strategies.prune.importance: taylor}
    paper: {params: "> 39.2M"}
  - name: somebody else's
    missing: "the method does not exist here"
    paper: {top1: 77.7}
"""


def write_small(folder: Path, text: str = ABLATION) -> Path:
    """The table and its base recipe in a folder; returns the table's file."""
    (folder / "base.yaml").write_text(BASE)
    path = folder / "table.yaml"
    path.write_text(text)
    return path


def planned(path: Path, pool: Path, scale: str | None = None) -> tuple[Table, Jobs]:
    table = at_scale(read_ablation(path), scale)
    return table, plan_jobs(table, pool)


def evaluate_here(patch: pytest.MonkeyPatch) -> None:
    """A new process for each run's evaluation takes longer than these runs; tests/engine has that."""

    def rows(finish: Finish) -> list[dict[str, Any]]:
        run = finish.run
        return Assessor.of_file(finish.folder.model, finish.recipe, run.data, torch.device("cpu")).rows()

    patch.setattr(Finish, "_in_new_process", rows)


def pretend(jobs: Jobs, row: str, seed: int, top1: float, *, met: bool = True, macs: int = 2_000_000) -> None:
    """Write a result that no run has made."""
    job = jobs.of_row[row, seed]
    whole = {"params": 30_000, "macs": 3_000_000, "top1": 95.0, "file_bytes": 1, "epochs": 2, "latency": []}
    found = {
        "usdcore": "0.1.0",
        "recipe": "small",
        "recipe_sha256": recipe_sha256(job.recipe),
        "model": "vit_tiny_patch16_224",
        "input_size": 8,
        "num_classes": 10,
        "dense": whole,
        "compressed": {**whole, "macs": macs, "top1": top1, "executed_macs": macs / 2},
        "budget": {"metric": "macs", "target": 0.7, "achieved": 0.7, "batch_size": 32, "scope": "batch"}
        | {"tolerance": 0.01, "why": "" if met else "0.9 for 0.7 asked", "met": met},
        "eval": [{"batch_size": 1, "scope": "batch", "order": "shuffled", "top1": top1 - 1, "executed_macs": macs}],
        "structure": [{"block": "blocks.0", "ffn": {"branch": "blocks.0.mlp", "hidden": 5, "hidden_dense": 128}}],
        "gates": {"networks": 0, "decisions": 0, "dynamic": 0, "macs": 0, "paper_flops": 0},
        "provenance": {"versions": {"torch": "2"}, "device": "a CPU", "seed": seed, "data": {"source": "digits"}}
        | {"seconds": 1.0, "date": "2026-01-01"},
    }
    job.folder.mkdir(parents=True)
    (job.folder / "result.json").write_text(json.dumps(found))
