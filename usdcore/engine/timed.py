"""A budget of time on the device that runs it: met as a budget of MACs, which measurements of the model itself find.

Time is no sum over a model's parts, but for one kind of model on one device it nearly is a straight line in its MACs.
So a run times the dense model beside uniformly narrower ones when it starts; the search gets the share of MACs at which
that line meets the target (and sizes that the device is fast at, see `engine.sizes`). When a phase has decided, the
model that it would leave is timed beside the dense one, and the share is moved until that time is the target.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import torch

from usdcore.engine.controls import narrow_plan
from usdcore.errors import UsdcoreError
from usdcore.latency import Timing, measure_latency
from usdcore.machine import conditions
from usdcore.plans import Plan
from usdcore.runner import detach
from usdcore.surgery import shrink_found
from usdcore.units import find_units

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from torch import nn

    from usdcore.projection import Projection
    from usdcore.session import Session
    from usdcore.units.types import Units

#: Shares of the dense MACs at which the line is measured: the first that the model can be cut to.
NARROW = (0.5, 0.7, 0.85)
#: The measured ratio is as near as measurements tell, and how often a plan is made anew to come so near.
CLOSE, TRIES = 0.01, 5
#: The promise at the end, beside twice the standard error of the measurement.
TOLERANCE = 0.02


def latency_ratios(
    models: Mapping[str, nn.Module], batch: int, shape: tuple[int, ...], device: Any
) -> dict[str, float]:
    """Times of models over that of the first one, at a batch size, interleaved."""
    rows = measure_latency(models, shape, [batch], Timing(rounds=15, seconds=15.0, device=device))
    return {name: own[0]["ratio_to_dense"] for name, own in rows.items()}


@dataclass
class TimedBudget:
    """`target` is a share of the dense model's time at `batch_size`; `ratios` times models of one batch size."""

    dense: nn.Module
    input_shape: tuple[int, ...]
    target: float
    batch_size: int
    ratios: Callable[[Mapping[str, nn.Module], int], Mapping[str, float]]
    share: Callable[[Callable[[], Any]], Any] = field(default=lambda action: action())
    """Has the first of several processes measure, and tells all."""
    tried: list[tuple[float, float]] = field(default_factory=list)
    """Of the last phase: every share of the dense MACs, and the share of the dense time that was measured there."""

    def begin(self, device: torch.device) -> dict[str, Any]:
        """What the search needs: `macs`, the share of the dense MACs to ask for, and how it was found. Errors: a target
        below what a model without any MACs would take.
        """
        found: dict[str, Any] = self.share(lambda: self._begin(device))
        if found["macs"] <= 0:
            msg = (
                f"budget.latency: {self.target:g} of the dense model's time can't be reached on this device: at "
                f"{found['narrow_macs']:.3f} of its MACs the model takes {found['narrow_time']:.3f} of it; ask for more"
            )
            raise UsdcoreError(msg)
        return found

    def _begin(self, device: torch.device) -> dict[str, Any]:
        example = torch.zeros(1, *self.input_shape, device="meta")
        units = find_units(self.dense, example)
        narrow, macs = self._narrow(units, example)
        time = self.ratios({"dense": self.dense, "narrow": narrow}, self.batch_size)["narrow"]
        return {
            "macs": min(1.0, 1 - (1 - self.target) * (1 - macs) / max(1 - time, 1e-6)),
            "narrow_macs": macs,
            "narrow_time": time,
            "conditions": conditions(device) | {"batch_size": self.batch_size, "threads": torch.get_num_threads()},
        }

    def settle(self, session: Session, project: Callable[[float], Projection]) -> Projection:
        """Of the projections by a share of the dense MACs, the one whose model takes the target of the dense model's
        time. Begins at the session's own target, which becomes the share that was found.

        Errors: `project`'s own, where it has none at the first share.
        """
        share = session.budget.target
        tries: list[tuple[float, float, float, Projection]] = []
        for _ in range(TRIES):
            try:
                projection = project(share)
            except UsdcoreError:
                if not tries:
                    raise
                break
            time = self._time(_left_by(session, projection))
            tries.append((abs(time - self.target), share, time, projection))
            if tries[-1][0] <= CLOSE:
                break
            moved = 1 - (1 - self.target) * (1 - share) / max(1 - time, 1e-3)
            share = min(1.0, max(moved, share / 2))
        self.tried = [(share, time) for _, share, time, _ in tries]
        _, share, _, projection = min(tries, key=lambda one: one[0])
        session.budget = replace(session.budget, target=share)
        return projection

    def _time(self, small: nn.Module) -> float:
        """Of a model, over that of the dense one."""

        def measured() -> float:
            return self.ratios({"dense": self.dense, "small": small}, self.batch_size)["small"]

        return float(self.share(measured))

    def _narrow(self, units: Units, example: torch.Tensor) -> tuple[nn.Module, float]:
        """A uniformly narrower model, and its share of the dense MACs."""
        for share in NARROW:
            try:
                plan = narrow_plan(units, share * units.macs)
            except UsdcoreError:
                continue
            small, left = shrink_found(copy.deepcopy(self.dense), units, Plan(records=plan.records), example)
            return small, left.macs / units.macs
        msg = "budget.latency: this model can't be made uniformly narrower, so its time can't be foreseen; use macs"
        raise UsdcoreError(msg)


def _left_by(session: Session, projection: Projection) -> nn.Module:
    """A copy of the model as a projection would leave it, without gates."""
    copied = copy.deepcopy(session.model)
    detach(copied)
    plan = Plan(records=tuple(projection.records))
    return shrink_found(copied, session.units, plan, session.example_inputs)[0]


def require_static(session: Session) -> None:
    """Errors: gates depend on the input, so that there is no one time of the model."""
    gates = session.gating.all() if session.gating is not None else ()
    plugins = sorted({name for name, made in session.known.items() for g in made.gates.values() if g.scope != "static"})
    if plugins or any(gate.scope != "static" for gate in gates):
        msg = (
            f"budget.latency: {', '.join(plugins) or 'a gate'} decides for each input, so how long the model takes "
            "depends on the images, and no time can be promised; use budget.macs, and usdcore bench for the time"
        )
        raise UsdcoreError(msg)


def met(row: Mapping[str, Any], target: float) -> tuple[float, float, str]:
    """The measured ratio of a finished model, its tolerance, and why the budget is missed (empty: it is met).

    `row` is the model's of `measure_latency`. The standard error of a median is 1.25 times that of a mean, and the
    quartiles of normal noise lie 1.35 standard deviations apart.
    """
    achieved = float(row["ratio_to_dense"])
    error = 1.25 / 1.35 * float(row["ratio_iqr"]) / max(int(row["rounds"]), 1) ** 0.5
    tolerance = TOLERANCE + 2 * error
    if abs(achieved - target) <= tolerance:
        return achieved, tolerance, ""
    why = f"{achieved:.4f} of the dense model's time measured for {target:g} asked, at batch size {row['batch_size']}"
    return achieved, tolerance, f"{why}; the noise of this measurement is {error:.4f}"
