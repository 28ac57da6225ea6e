"""The threshold's calibration: bisection finds the dial's place, and the nearest end where there is none."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from usdcore.gates import Gate, Gating
from usdcore.measure import Execution, calibrate, set_threshold


def gating_with_logits() -> tuple[Gating, Gate]:
    gate = Gate()
    gate.scope = "batch"
    gating = Gating()
    gating.add("g", gate)
    return gating, gate


@given(target=st.floats(0.05, 0.95), scale=st.floats(0.01, 500), shift=st.floats(-50, 50))
def test_finds_the_target(target: float, scale: float, shift: float) -> None:
    gating, gate = gating_with_logits()
    logits = torch.linspace(-1, 1, 1000, dtype=torch.float64) * scale + shift

    def measure() -> Execution:
        return Execution(float((logits > gate.threshold).double().mean()), {}, (), 1000)

    found = calibrate(gating, measure, target, tolerance=0.002)
    assert abs(found.execution.macs - target) <= 0.002
    assert gate.threshold == found.threshold


def test_out_of_reach_sets_the_nearest_end() -> None:
    gating, gate = gating_with_logits()
    found = calibrate(gating, lambda: Execution(0.5 if gate.threshold < 3 else 0.3, {}, (), 1), 0.1, 0.001)
    assert found.execution.macs == 0.3


def test_few_measurements() -> None:
    gating, gate = gating_with_logits()
    count = 0

    def measure() -> Execution:
        nonlocal count
        count += 1
        return Execution(1 / (1 + 2.718**gate.threshold), {}, (), 1)

    calibrate(gating, measure, 0.31, 0.0005)
    assert count < 20


def test_static_gates_keep_their_threshold() -> None:
    gating, gate = gating_with_logits()
    gate.scope = "static"
    set_threshold(gating, 2.0)
    assert gate.threshold == 0.0


@pytest.mark.parametrize("macs", [(), (3.0,), (1.0, 3.0)])
def test_standard_error(macs: tuple[float, ...]) -> None:
    assert Execution(0, {}, macs, 1).standard_error == pytest.approx(1.0 if len(macs) == 2 else 0.0)
