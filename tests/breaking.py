"""Runs that are broken off: by benchmarks/resume.py, as a module, and after a number of steps."""

from __future__ import annotations

import importlib.util
import multiprocessing
import sys
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

from usdcore.engine import keep, pipeline

ROOT = Path(__file__).parents[1]


def _load() -> ModuleType:
    spec = importlib.util.spec_from_file_location("resume_harness", ROOT / "benchmarks" / "resume.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


harness: Any = _load()


def broken_off(recipe: Path, out: Path, moment: Any) -> int:
    """In a fork of this process, which has imported everything already; returns its exit code."""
    process = multiprocessing.get_context("fork").Process(target=_break_off, args=(str(recipe), str(out), moment))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # later Pythons warn of forks beside threads
        process.start()
    process.join()
    assert process.exitcode is not None
    return process.exitcode


def _break_off(recipe: str, out: str, moment: Any) -> None:
    torch.set_num_threads(1)
    sys.exit(harness.child(recipe, out, moment, 0.0))


def weights_of_runs(recipe: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[Path], Mapping[str, torch.Tensor]]:
    """Runs the phases of a recipe, and nothing behind them, into a folder; returns the model's weights."""

    class Finish:
        def __init__(self, around: Any) -> None:
            self.around = around

        def execute(self) -> dict[str, Any]:
            return {"budget": {"met": True}, "model": self.around.session.model.state_dict()}

    monkeypatch.setattr(pipeline, "Finish", Finish)
    return lambda out: pipeline.run(recipe, out)["model"]


def broken_off_ends_alike(
    run: Callable[[Path], Mapping[str, torch.Tensor]],
    folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    steps: Sequence[int],
) -> None:
    """A run that is broken off after so many steps, each time, and then goes on ends with an unbroken one's weights."""
    unbroken, real = run(folder / "unbroken"), keep.Epochs.after_step
    for stop_after in steps:
        done = 0

        def after_step(self: Any, fit: Any, stop_after: int = stop_after) -> None:
            nonlocal done
            real(self, fit)
            done += 1
            if done == stop_after:
                self.write(fit)
                raise KeyboardInterrupt

        monkeypatch.setattr(keep.Epochs, "after_step", after_step)
        with pytest.raises(KeyboardInterrupt):
            run(folder / f"{stop_after}")
        monkeypatch.setattr(keep.Epochs, "after_step", real)
        again = run(folder / f"{stop_after}")
        assert again.keys() == unbroken.keys()
        assert all(torch.equal(again[name], unbroken[name]) for name in unbroken), stop_after
