"""Real runs of two processes: the losses of one, the same plan everywhere, and an end in good order."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from several import Processes, joined, launch, rank, run
from tiny import TINY

from usdcore.engine import finish, fit, keep
from usdcore.engine.buckets import average_step
from usdcore.errors import UsdcoreError
from usdcore.strategy import StepContext
from usdcore_usdc.dynamic import Dynamic
from usdcore_usdc.layer_gate import Grouping, Groups

HEAD = TINY[: TINY.index("phases:")]
ALIKE = """phases:
  - {name: dense, epochs: 1}
  - name: search
    epochs: 2
    strategies: [{use: usdc-static, lr: 0.1, ramp: 0.5, target: 0.8}, {use: distill, teacher: dense}]
  - {name: finetune, epochs: 1}
evaluate: {batch_sizes: [32], calibration_images: 96}
latency: {batch_sizes: [1], repeats: 1}
"""
GATED = """phases:
  - {name: dense, epochs: 1}
  - name: search
    epochs: 2
    strategies:
      - {use: usdc-static, lr: 0.05, ramp: 0.0, branches: false}
      - {use: usdc-dynamic, space: [G1, G5], lr: 0.02, ramp: 0.0, init_logit: 0.0, information_weight: 30.0}
      - {use: distill, teacher: dense, cache: true}
  - {name: finetune, epochs: 1, strategies: [usdc-dynamic]}
evaluate: {batch_sizes: [32], calibration_images: 96}
latency: {batch_sizes: [1], repeats: 1}
checkpoint: {seconds: 1000}
"""
PLAIN = ("data.batch_size=256", "data.augment=none", "train.mixup=0", "model.kwargs.proj_drop_rate=0.1")


@pytest.fixture
def alike(tmp_path: Path) -> Path:
    (tmp_path / "alike.yaml").write_text(HEAD + ALIKE)
    return tmp_path / "alike.yaml"


@pytest.fixture
def gated(tmp_path: Path) -> Path:
    (tmp_path / "gated.yaml").write_text(HEAD + GATED)
    return tmp_path / "gated.yaml"


def metrics(out: Path) -> list[dict[str, Any]]:
    """Without what a clock says."""
    lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    clock = ("time", "seconds", "images_per_second", "waited")
    return [{k: v for k, v in line.items() if k not in clock} for line in lines]


def _share(processes: Processes) -> None:
    own, world = processes.rank, processes.world
    x = torch.tensor([1.0 + own, 0.1 * own, 3.0], requires_grad=True)
    mean = processes.mean(x)
    assert processes.exchange(mean.tolist()) == [mean.tolist()] * world
    assert mean.tolist() == pytest.approx([2.0, 0.1, 3.0])
    (mean[0] ** 2).backward()  # the whole batch's loss is the square of the mean: its slope 2 * 2, in each process
    assert x.grad is not None
    assert x.grad.tolist() == pytest.approx([4.0, 0.0, 0.0])
    assert processes.largest(torch.tensor([own, -own])).tolist() == [2, 0]
    assert processes.any(own == 1, False) == (True, False)
    assert processes.from_first(lambda: processes.rank) == 0
    with processes.apart():
        assert processes.mean(x) is x
    trees = processes.gather({"a": [torch.full((2,), own), torch.tensor(own > 0)], "b": None, "c": torch.empty(0)})
    assert [tree["a"][0].tolist() for tree in trees] == ([[1, 1], [2, 2]] if own == 0 else [])
    _average(processes)
    processes.same_everywhere("a", "the plan")
    with pytest.raises(UsdcoreError, match=r"the plan is not the same in every process \(process 2 differs\)"):
        processes.same_everywhere("b" if own == 2 else "a", "the plan")


def _average(processes: Processes) -> None:
    """Gradients that are missing here, everywhere, and nowhere; BatchNorm's statistics."""
    own = processes.rank
    model = torch.nn.BatchNorm1d(2)
    parameters = [torch.nn.Parameter(torch.zeros(3)) for _ in range(3)]
    parameters[0].grad = torch.full((3,), float(own))
    if own == 1:
        parameters[1].grad = torch.full((3,), 6.0)
    model(torch.randn(4, 2) + own)
    terms = average_step(processes, model, parameters, {"task": torch.tensor(float(own)), "more": torch.tensor(2.0)})
    assert {name: float(term) for name, term in terms.items()} == {"task": 1.0, "more": 2.0}
    assert [None if p.grad is None else p.grad.tolist() for p in parameters] == [[1.0] * 3, [2.0] * 3, None]
    assert model.running_mean is not None
    assert len({str(found) for found in processes.exchange(model.running_mean.tolist())}) == 1


def test_three_processes_share(tmp_path: Path) -> None:
    for code, said in launch(3, tmp_path, joined, _share):
        assert (code, said) == (0, "")


def test_the_losses_and_the_plan_of_one_process(alike: Path, tmp_path: Path) -> None:
    ((_, alone),) = launch(1, tmp_path, run, alike, tmp_path / "one")
    assert "processes" not in alone
    (first, said), (second, silence) = launch(2, tmp_path, run, alike, tmp_path / "two")
    assert first in (0, 3), said
    assert (second, silence) == (0, "")
    assert "2 processes, each with 64 of the 128 images of a step" in said
    assert "groups" not in said
    one, two = metrics(tmp_path / "one"), metrics(tmp_path / "two")
    assert len(one) == len(two)
    for ours, theirs in zip(two, one, strict=True):
        assert ours == {k: pytest.approx(v, rel=1e-4) if isinstance(v, float) else v for k, v in theirs.items()}
    results = [json.loads((tmp_path / name / "result.json").read_text()) for name in ("one", "two")]
    assert [result["provenance"]["processes"] for result in results] == [1, 2]
    weights = [load_file(tmp_path / name / "model.safetensors") for name in ("one", "two")]
    assert {k: v.shape for k, v in weights[0].items()} == {k: v.shape for k, v in weights[1].items()}
    assert all(torch.allclose(weights[1][k], v, atol=2e-3) for k, v in weights[0].items())


def _interrupt_at(*updates: int) -> None:
    """SIGTERM to the second process alone, once the search has come so far."""
    if rank() != 1:
        return
    real = fit.Fit._step

    def step(self: fit.Fit, images: torch.Tensor, target: torch.Tensor) -> Any:
        if self.stage.name == "search" and self.state.epoch * self.steps + self.state.step in updates:
            os.kill(os.getpid(), signal.SIGTERM)
        return real(self, images, target)

    fit.Fit._step = step  # type: ignore[method-assign]


def test_a_signal_to_one_ends_both_which_go_on_to_the_same_bits(gated: Path, tmp_path: Path) -> None:
    """Dropout, groups, and a cache of which each process has its own part."""
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    for code, said in launch(2, tmp_path, run, gated, whole, *PLAIN):
        assert code in (0, 3), said
    assert json.loads((whole / "result.json").read_text())["warnings"] is not None

    def spoil() -> None:
        _interrupt_at(7)

    (first, said), second = launch(2, tmp_path, _spoilt, gated, broken, spoil, *PLAIN)
    assert (first, second) == (130, (130, ""))
    assert "usdc-dynamic: groups are split within each process's 128 images" in said
    assert "To go on: the same command again\n  (launched as before) usdcore run" in said
    (first, said), second = launch(2, tmp_path, run, gated, broken, *PLAIN)
    assert "going on from" in said
    assert (broken / "model.safetensors").read_bytes() == (whole / "model.safetensors").read_bytes()
    assert metrics(broken) == metrics(whole)


def _spoilt(recipe: Path, out: Path, spoil: Any, *overrides: str) -> int:
    return run(recipe, out, *overrides, spoil=spoil)


@pytest.mark.slow
def test_another_number_of_processes_goes_on_and_says_so(gated: Path, tmp_path: Path) -> None:
    def spoil() -> None:
        _interrupt_at(3)

    launch(2, tmp_path, _spoilt, gated, tmp_path / "run", spoil, *PLAIN)
    launch(1, tmp_path, run, gated, tmp_path / "run", *PLAIN)
    result = json.loads((tmp_path / "run" / "result.json").read_text())
    (words,) = (one["text"] for one in result["warnings"] if "broken off" in one["text"])
    assert "with 2 processes and goes on with 1" in words


def _bad_numbers_in_the_second() -> None:
    if rank() != 1:
        return
    real = Dynamic.losses

    def losses(self: Dynamic, ctx: StepContext) -> dict[str, torch.Tensor]:
        is_time = ctx.step == 7 and ctx.lr is not None and ctx.lr > 0.3e-3
        return {k: v * float("nan") if is_time and k == "information" else v for k, v in real(self, ctx).items()}

    Dynamic.losses = losses  # type: ignore[method-assign]


def _note_groups(folder: Path) -> None:
    """The groups of each step, in a file of each process."""
    real = Grouping.draw

    def draw(self: Grouping, batch_size: int, tick: int, device: torch.device) -> Groups:
        found = real(self, batch_size, tick, device)
        with (folder / f"groups-{rank()}.jsonl").open("a") as file:
            file.write(json.dumps([batch_size, found.sizes_G.tolist(), found.ids_B.tolist()]) + "\n")
        return found

    Grouping.draw = draw  # type: ignore[method-assign]


def test_bad_numbers_in_one_send_both_back_and_groups_are_each_ones_own(gated: Path, tmp_path: Path) -> None:
    sets = (*PLAIN, "train.sched=none", "train.lr=5.0e-4")

    def spoil() -> None:
        _note_groups(tmp_path)
        _bad_numbers_in_the_second()

    found = launch(2, tmp_path, _spoilt, gated, tmp_path / "run", spoil, *sets)
    assert [code in (0, 3) for code, _ in found] == [True, True], found
    result = json.loads((tmp_path / "run" / "result.json").read_text())
    (words,) = (one["text"] for one in result["warnings"] if "half" in one["text"])
    cause = "process 1: the loss term information of usdc-dynamic is nan"
    assert f"phase search, epoch 2, step 3: {cause}; going back to the start of epoch 2, on with half" in words
    drawn = [[json.loads(row) for row in (tmp_path / f"groups-{n}.jsonl").read_text().splitlines()] for n in (0, 1)]
    assert len(drawn[0]) == len(drawn[1]) > 10
    for (size, sizes, ids), (_, others, other_ids) in zip(*drawn, strict=True):
        assert (size, sum(sizes)) == (128, 128)
        assert sizes == others == [64, 32, 16, 8, 4, 2, 1, 1]
        assert ids != other_ids


def _error_in_the_second() -> None:
    if rank() == 1:
        keep.Epochs.begin_epoch = _full  # type: ignore[method-assign, assignment]


def _full(*_: Any) -> None:
    raise UsdcoreError("the image 7.png can't be read")


def _bug_in_the_first() -> None:
    if rank() == 0:
        finish.Finish._save_and_evaluate = _wrong  # type: ignore[method-assign, assignment]


def _wrong(*_: Any) -> None:
    raise ZeroDivisionError("oh")


def test_an_error_in_one_is_told_by_the_first(alike: Path, tmp_path: Path) -> None:
    first, second = launch(2, tmp_path, _spoilt, alike, tmp_path / "run", _error_in_the_second)
    assert (first[0], second[0]) == (1, 1)
    assert "error: process 1 ended: the image 7.png can't be read" in first[1]


@pytest.mark.slow
def test_a_bug_in_one_ends_the_other(alike: Path, tmp_path: Path) -> None:
    first, second = launch(2, tmp_path, _spoilt, alike, tmp_path / "run", _bug_in_the_first)
    assert (first[0], second[0]) == (2, 1)
    assert "ZeroDivisionError: oh" in first[1]


def test_a_batch_that_cant_be_shared(alike: Path, tmp_path: Path) -> None:
    first, second = launch(2, tmp_path, run, alike, tmp_path / "run", "data.batch_size=50")
    assert (first[0], second) == (1, (1, "")), first
    assert "alike.yaml:" in first[1] or "--set" in first[1]
    assert "can't be shared evenly by 2 processes, in pairs" in first[1]
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
@pytest.mark.parametrize("launcher", [["torchrun", "--standalone", "--nproc_per_node", "2"], ["accelerate"]])
@pytest.mark.parametrize("victim", [0, 1])
def test_a_process_that_is_killed(gated: Path, tmp_path: Path, launcher: list[str], victim: int) -> None:
    """By a real launcher: the other one says so, and the same command goes on to the same bits."""
    if launcher == ["accelerate"]:
        pytest.importorskip("accelerate")
        launcher = ["accelerate", "launch", "--multi_gpu", "--num_processes", "2", "--main_process_port", "0"]
    program = Path(sys.executable).with_name(launcher[0])

    def start(out: str) -> subprocess.Popen[str]:
        command = [str(program), *launcher[1:], "-m", "usdcore", "run", str(gated), "--out", out]
        command += [part for one in (*PLAIN, "phases.1.epochs=20", "checkpoint.seconds=0.5") for part in ("--set", one)]
        return subprocess.Popen(command, cwd=tmp_path, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True)

    start("whole").communicate()
    first = start("broken")
    path = tmp_path / "broken" / "metrics.jsonl"
    while not (path.is_file() and "search" in path.read_text()):
        assert first.poll() is None
        time.sleep(0.01)
    os.kill(_process(victim, str(gated)), signal.SIGKILL)
    assert f"process {victim} of 2 went silent: it was killed" in first.communicate()[1]
    assert "going on from" in start("broken").communicate()[1]
    files = [(tmp_path / name / "model.safetensors").read_bytes() for name in ("whole", "broken")]
    assert files[0] == files[1]


def _process(wanted: int, recipe: str) -> int:
    """The process that a launcher has started with this rank."""
    for folder in Path("/proc").iterdir():
        if folder.name.isdigit():
            try:
                is_ours = recipe.encode() in (folder / "cmdline").read_bytes()
                if is_ours and f"RANK={wanted}".encode() in (folder / "environ").read_bytes().split(b"\0"):
                    return int(folder.name)
            except OSError:
                continue
    raise AssertionError("not found")
