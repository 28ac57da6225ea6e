"""Which hidden widths a device is fast at: multiples of a step, found by timing the model at neighbouring widths."""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING

from usdcore.plans import Keep, Plan
from usdcore.surgery import shrink_found

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

    import torch
    from torch import nn

    from usdcore.units.types import Group, Units

    #: Times of models, by name, over that of the first one.
    Ratios = Callable[[Mapping[str, nn.Module]], Mapping[str, float]]

#: Steps to choose from, and how far below a multiple of the last one a width lies that is a multiple of just that step.
OFFSETS = {1: 1, 8: 8, 16: 16, 32: 32}
WIDEST = 64
#: A step is as good as the best if its widths take at most this much more time than those.
SLACK = 0.01


def fast_step(model: nn.Module, units: Units, example_inputs: torch.Tensor, ratios: Ratios) -> int:
    """The smallest step of hidden widths that is not slower than the best one; 1 where layers are too narrow to tell.

    Every feed-forward layer of 128 neurons or more is cut to a multiple of 64, to the next one below, and to widths in
    between: these should take the time of a straight line between the two.
    """
    groups = [g for g in units.groups.values() if _may_be_rounded(g) and g.size >= 2 * WIDEST]
    if not groups:
        return 1
    plans = {below: _plan(groups, below) for below in (0, WIDEST, *OFFSETS.values())}
    models = {str(b): shrink_found(copy.deepcopy(model), units, p, example_inputs)[0] for b, p in plans.items()}
    times = ratios(models)
    first, slope = times["0"], (times["0"] - times[str(WIDEST)]) / WIDEST
    excess = {step: times[str(below)] / (first - below * slope) for step, below in OFFSETS.items()} | {WIDEST: 1.0}
    best = min(excess.values())
    return min(step for step, found in excess.items() if found <= (1 + SLACK) * best)


def rounded_sizes(units: Units, names: Iterable[str], step: int) -> dict[str, tuple[int, ...]]:
    """For each hidden group among `names`, the numbers of neurons that it may be left with: multiples of `step`."""
    groups = {name: units.groups[name] for name in names if name in units.groups}
    return {
        name: (*range(step, group.size, step), group.size)
        for name, group in groups.items()
        if step > 1 and _may_be_rounded(group) and group.size >= 2 * step
    }


def _may_be_rounded(group: Group) -> bool:
    return group.kind == "hidden" and group.reason is None and group.parent_of is None


def _plan(groups: Iterable[Group], below: int) -> Plan:
    return Plan(
        records=tuple(Keep(group=g.name, indices=tuple(range(g.size // WIDEST * WIDEST - below))) for g in groups)
    )
