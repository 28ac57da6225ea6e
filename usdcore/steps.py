"""Which sizes a device is fast at: multiples of a step, found by timing the model at neighbouring hidden widths."""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING

from usdcore.plans import Drop, Keep, Plan
from usdcore.surgery import shrink_found
from usdcore.units.types import is_width

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

    import torch
    from torch import nn

    from usdcore.units.types import Branch, Group, Units

    #: Times of models, by name, over that of the first one.
    Ratios = Callable[[Mapping[str, nn.Module]], Mapping[str, float]]

#: Steps to choose from, and how far below a multiple of the last one a width lies that is a multiple of just that step.
OFFSETS = {1: 1, 8: 8, 16: 16, 32: 32}
WIDEST = 64
#: A step is as good as the best if its widths take at most this much more time than those.
SLACK = 0.01


def slowdowns(model: nn.Module, units: Units, example_inputs: torch.Tensor, ratios: Ratios) -> dict[int, float]:
    """By step, the time at widths that are multiples of just that, over what a straight line between multiples of 64
    gives there; empty where layers are too narrow to tell.

    Every feed-forward layer of 128 neurons or more is cut to a multiple of 64, to the next one below, and to widths in
    between. Attention, whose time does not depend on them, is left out where it can be.
    """
    groups = [g for g in units.groups.values() if g.kind == "hidden" and _may_be_rounded(g) and g.size >= 2 * WIDEST]
    if not groups:
        return {}
    own = {unit.branch for unit in units.ffn}
    others = [unit.branch for unit in units.attention if unit.branch not in own]
    plans = {below: _plan(groups, below, others) for below in (0, WIDEST, *OFFSETS.values())}
    models = {str(b): shrink_found(copy.deepcopy(model), units, p, example_inputs)[0] for b, p in plans.items()}
    times = ratios(models)
    first, slope = times["0"], (times["0"] - times[str(WIDEST)]) / WIDEST
    return {step: times[str(below)] / (first - below * slope) for step, below in OFFSETS.items()} | {WIDEST: 1.0}


def fast_step(found: Mapping[int, float]) -> int:
    """Of `slowdowns`, the smallest step that is not slower than the best one; 1 (any size) where there are none."""
    best = min(found.values(), default=1.0)
    return min((step for step, slowdown in found.items() if slowdown <= (1 + SLACK) * best), default=1)


def rounded_sizes(units: Units, names: Iterable[str], step: int) -> dict[str, tuple[int, ...]]:
    """For each group among `names` that makes matrices narrower, how many entries it may be left with: multiples of
    `step`, or all. These are hidden neurons, channels of a stream, and the dims in all heads of a layer together; whole
    heads have a width of their own.
    """
    groups = {name: group for name in names if (group := units.group(name)) is not None and _may_be_rounded(group)}
    return {
        name: (*range(step, group.size, step), group.size)
        for name, group in groups.items()
        if step > 1 and group.size >= 2 * step
    }


def _may_be_rounded(group: Group) -> bool:
    if group.reason is not None:
        return False
    is_inside = group.parent_of is not None
    return is_width(group.name) or (group.kind in ("qk_dims", "v_dims") if is_inside else group.kind == "hidden")


def _plan(groups: Iterable[Group], below: int, others: Iterable[Branch | None]) -> Plan:
    cuts = (Keep(group=g.name, indices=tuple(range(g.size // WIDEST * WIDEST - below))) for g in groups)
    drops = (Drop(branch=b.name) for b in dict.fromkeys(others) if b is not None and b.reason is None)
    return Plan(records=(*cuts, *drops))
