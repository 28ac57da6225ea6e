"""What a gated model really executes on given images, and the threshold at which it executes a given amount."""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from usdcore.errors import UsdcoreError
from usdcore.executed import batch_macs

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from contextlib import AbstractContextManager

    from torch import Tensor, nn

    from usdcore.gates import Gating
    from usdcore.units.types import Units


@dataclass(frozen=True)
class Execution:
    """Means over images: executed `macs` per image, the share of images for which each gated branch ran.

    `batch_macs` has the per-image MACs of each batch: its spread gives the standard error of `macs`.
    """

    macs: float
    rates: dict[str, float]
    batch_macs: tuple[float, ...]
    num_images: int
    #: Of the number of tokens that branches were given, and of its square, where it was not all.
    tokens: dict[str, tuple[float, float]] = field(default_factory=dict)

    @property
    def is_dynamic(self) -> bool:
        """Whether anything of it depends on gates."""
        return bool(self.rates or self.tokens)

    @property
    def standard_error(self) -> float:
        """Of `macs`, from the spread over batches; 0 for a single batch."""
        if len(self.batch_macs) < 2:
            return 0.0
        return float(np.std(self.batch_macs, ddof=1) / np.sqrt(len(self.batch_macs)))


class Meter:
    """Adds up what each forward of a gated model executed. Call `add` after every forward."""

    def __init__(self, units: Units, gating: Gating | None) -> None:
        self.units = units
        self.gating = gating
        self.batches: list[tuple[int, int]] = []
        self.on: dict[str, float] = {}
        self.tokens: dict[str, tuple[float, float]] = {}

    def add(self, batch_size: int) -> None:
        """Count the last forward, of `batch_size` images."""
        if self.gating is None:
            self.batches.append((batch_macs(self.units, {}, 0, batch_size), batch_size))
            return
        state, gate_macs = self.gating.state, self.gating.count_macs()
        decisions, counts = state.dynamic, state.counts
        macs = batch_macs(
            self.units, decisions, gate_macs, batch_size, counts, self.gating.prices, state.partly - state.wholly
        )
        self.batches.append((macs, batch_size))
        for branch, count in counts.items():
            first, second = self.tokens.get(branch, (0.0, 0.0))
            n = count.double()
            self.tokens[branch] = (
                first + float(n.mean()) * batch_size,
                second + float(n.square().mean()) * batch_size,
            )
        for site, keep in decisions.items():
            if site in self.units.branches:
                self.on[site] = self.on.get(site, 0.0) + float(keep.float().mean()) * batch_size

    def result(self) -> Execution:
        """The means so far."""
        images = sum(size for _, size in self.batches)
        total = sum(macs for macs, _ in self.batches)
        per_batch = tuple(macs / size for macs, size in self.batches)
        rates = {site: on / images for site, on in self.on.items()}
        tokens = {name: (first / images, second / images) for name, (first, second) in self.tokens.items()}
        return Execution(total / images, rates, per_batch, images, tokens)


@torch.inference_mode()
def execute(
    model: nn.Module,
    units: Units,
    gating: Gating | None,
    batches: Iterable[Tensor],
    amp: Callable[[], AbstractContextManager[Any]] = nullcontext,
) -> Execution:
    """Run `model` in evaluation mode over batches of images [B, C, H, W]."""
    was_training = model.training
    model.eval()
    meter = Meter(units, gating)
    for images in batches:
        with amp():
            model(images)
        meter.add(len(images))
    model.train(was_training)
    if not meter.batches:
        msg = "there are no images to measure gate rates on: give more calibration images"
        raise UsdcoreError(msg)
    return meter.result()


def steady_rates(gating: Gating | None, found: Execution, measure: Callable[[], Execution]) -> dict[str, float]:
    """Rates that are 0 or 1 only where a branch is off or on for every batch, and for every image by itself.

    A decision that a batch shares is that of its mean, which is nearly the same for all large batches: one that never
    changes there may still tell images apart. `found` is what `measure` gave with the decisions as they are.
    """
    shared = [gate for gate in gating.all() if gate.scope == "batch"] if gating is not None else []
    if not shared:
        return found.rates
    try:
        for gate in shared:
            gate.scope = "sample"
        alone = measure().rates
    finally:
        for gate in shared:
            gate.scope = "batch"
    return {name: (rate + alone.get(name, rate)) / 2 for name, rate in found.rates.items()}


@dataclass(frozen=True)
class Calibration:
    """The threshold found, and what is executed there."""

    threshold: float
    execution: Execution


def set_threshold(gating: Gating, threshold: float) -> None:
    """A gate is on where its logit exceeds the threshold; one dial for all dynamic gates."""
    for gate in gating.all():
        if gate.is_dialled:
            gate.threshold = threshold


def calibrate(gating: Gating, measure: Callable[[], Execution], target_macs: float, tolerance: float) -> Calibration:
    """Find by bisection the threshold at which `measure` executes `target_macs` per image, and set it.

    Stops within `tolerance` (MACs) or when the interval holds no further decision. Where the target lies outside what
    the gates can reach, the nearest end is set; the caller compares. Where no gate has a threshold, what is executed is
    measured and nothing set. What is executed falls as the threshold rises, but
    for the effect of earlier decisions on later ones, so the closest value seen is kept, not the last.
    """
    seen: dict[float, Execution] = {}

    def excess(threshold: float) -> float:
        set_threshold(gating, threshold)
        seen[threshold] = measure()
        return seen[threshold].macs - target_macs

    if not any(gate.is_dialled for gate in gating.all()):
        return Calibration(0.0, measure())
    low, high = _bracket(excess, tolerance)
    for _ in range(40):
        best = min(abs(e.macs - target_macs) for e in seen.values())
        if best <= tolerance or high - low < 1e-6 * max(1.0, abs(low)):
            break
        middle = (low + high) / 2
        low, high = (middle, high) if excess(middle) > 0 else (low, middle)
    threshold = min(seen, key=lambda t: abs(seen[t].macs - target_macs))
    set_threshold(gating, threshold)
    return Calibration(threshold, seen[threshold])


def _bracket(excess: Callable[[float], float], tolerance: float) -> tuple[float, float]:
    """Thresholds between which the excess changes sign, found by doubling from 0; both alike where there is none."""
    start = excess(0.0)
    if abs(start) <= tolerance:
        return 0.0, 0.0
    direction = 1.0 if start > 0 else -1.0
    inner, step = 0.0, 1.0
    while step <= 2**12:
        outer = direction * step
        if excess(outer) * direction <= 0:
            return min(inner, outer), max(inner, outer)
        inner, step = outer, step * 2
    return inner, inner
