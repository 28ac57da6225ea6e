"""Runs of every strategy that has state of its own are killed and go on to the same bits."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from breaking import broken_off, harness, weights_of_runs

RECIPE = """
name: tiny
model: {name: vit_tiny_patch16_224, num_classes: 10, kwargs: {patch_size: 2, embed_dim: 32, depth: 2, num_heads: 2}}
data: {source: digits, input_size: 8, batch_size: 256, augment: shift}
budget: {macs: 0.7854, batch_size: 32, scope: sample}
seed: 3
threads: 1
train: {lr: 1.0e-3, clip_grad: 1.0, ema: 0.9, mixup: 0.2, optimizer_state: carry}
phases:
  - {name: dense, epochs: 1}
  - {name: search, epochs: 2, train: {sched: none}, strategies: [SEARCH]}
  - {name: finetune, epochs: 1, strategies: [LATER]}
evaluate: {batch_sizes: [32], calibration_images: 128}
checkpoint: {seconds: 0}
"""
#: In the search, and the names of those that go on in the next phase.
STRATEGIES = {
    "dynamicvit": ("{use: dynamicvit, frozen_epochs: 1}", "dynamicvit"),
    "dynamicvit beside pruning": (
        "{use: dynamicvit, keep_ratio: 0.9, frozen_epochs: 0, host_lr: 1}, {use: prune, importance: taylor}",
        "dynamicvit",
    ),
    "adavit": ("{use: adavit, target: 0.8, keep_layers: 1}", "adavit"),
    "adavit, targets solved": ("{use: adavit, keep_layers: 1}, {use: distill, teacher: dense}", "adavit"),
    "tome": ("{use: tome}", "tome"),
    "tome beside uvc": ("{use: uvc, skip: none}, {use: tome, target: 0.9}", "tome"),
    "random-gates": ("{use: random-gates}", "random-gates"),
    "uvc": ("{use: uvc, skip: block}, {use: distill, teacher: dense}", "uvc"),
}
KILLS = [
    ("between the optimizer's step and the averaging", 9, 0, "search"),
    ("in a checkpoint's write, before a rename", 30, 3, "finetune"),
]


#: What the others of their kind show as well.
ALSO = {"dynamicvit beside pruning", "adavit", "tome", "random-gates", "uvc"}
NAMES = [pytest.param(name, marks=[pytest.mark.slow] if name in ALSO else []) for name in STRATEGIES]


@pytest.mark.parametrize("name", NAMES)
def test_killed_again_and_again(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    search, later = STRATEGIES[name]
    (tmp_path / "r.yaml").write_text(RECIPE.replace("SEARCH", search).replace("LATER", later))
    run = weights_of_runs(tmp_path / "r.yaml", monkeypatch)
    whole, out = run(tmp_path / "whole"), tmp_path / "broken"
    for point, number, workers, phase in KILLS:
        assert broken_off(tmp_path / "r.yaml", out, harness.Moment(point, number, workers)) == -9
        assert Path(f"{out}.moment").read_text() == phase
    again = run(out)
    assert again.keys() == whole.keys()
    assert [key for key in whole if not torch.equal(again[key], whole[key])] == []
