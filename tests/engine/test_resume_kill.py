"""A run that is broken off at any moment goes on with the same command and ends with the same bits."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from breaking import broken_off, harness
from tiny import finished, write_tiny

ON_THE_WAY = [
    ("in calibration, at a batch", 27, "SIGTERM", 130, "search"),  # at the phase's end
    ("in surgery, between two slices", 4, "SIGKILL", -9, "search"),
    ("in a checkpoint's write, before a rename", 5, "SIGKILL", -9, "finetune"),
]


def test_broken_off_three_times_on_the_way(tmp_path: Path) -> None:
    recipe = write_tiny(tmp_path)
    finished(recipe, tmp_path / "whole")
    for workers, (point, number, signal, code, phase) in enumerate(ON_THE_WAY):
        moment = harness.Moment(point, number, workers, signal)
        assert broken_off(recipe, tmp_path / "broken", moment) == code
        assert (tmp_path / "broken.moment").read_text() == phase
    finished(recipe, tmp_path / "broken")
    assert harness.equal(tmp_path / "broken", tmp_path / "whole")
    left = {path.name for path in (tmp_path / "broken" / "checkpoints").iterdir()}
    assert left == {"dense.safetensors", "last.safetensors", "previous.safetensors"}


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, float]:
    folder = tmp_path_factory.mktemp("whole")
    return folder / "whole", harness.unbroken(harness.RECIPE, folder / "whole", 0)


@pytest.mark.slow
@pytest.mark.parametrize("moment", harness.moments(), ids=lambda m: f"{m.point} {m.number} {m.workers} {m.signal}")
def test_broken_off_once(whole: tuple[Path, float], tmp_path: Path, moment: Any) -> None:
    outcome = harness.try_moment(harness.RECIPE, tmp_path, moment, *whole)
    assert outcome.resumed
    assert outcome.equal
