"""The budget rule: met down to single entries, best first, never an empty group, and an honest no."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import nn
from zoo import INPUT

from usdcore.costs import Tree, cost
from usdcore.errors import UsdcoreError
from usdcore.plans import Keep, Plan
from usdcore.projection import Limits, Projector
from usdcore.units import find_units

ONE = torch.zeros(1, *INPUT)


def scores_of(units, seed: int) -> dict[str, np.ndarray]:  # type: ignore[no-untyped-def]
    rng = np.random.default_rng(seed)
    groups = {g.name: rng.normal(size=g.size) for g in units.groups.values() if g.reason is None}
    return groups | {name: np.asarray(rng.normal() + 2) for name in units.branches}


@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(seed=st.integers(0, 2**32 - 1), target=st.floats(0.3, 0.95))
def test_the_budget_is_met_from_below_to_one_neuron(vit: nn.Module, seed: int, target: float) -> None:
    units = find_units(vit, ONE)
    tree = Tree(units)
    found = Projector(units, tree, scores_of(units, seed), {}).project(Limits(target * tree.total))
    exact = cost(units, Plan(records=tuple(found.records))).macs
    assert exact == found.after <= target * tree.total
    neuron = min(g.macs_per_entry for g in units.groups.values() if g.kind == "hidden")
    has_room = any(isinstance(r, Keep) and r.group.endswith("hidden") for r in found.records)
    if has_room:
        assert target * tree.total - exact < neuron or found.fallen == 0


def test_better_scores_stay(vit: nn.Module) -> None:
    units = find_units(vit, ONE)
    scores = scores_of(units, 0)
    found = Projector(units, Tree(units), scores, {}).project(Limits(0.6 * Tree(units).total))
    for record in found.records:
        if isinstance(record, Keep) and record.group.endswith("hidden") and len(record.indices) > 1:
            kept = np.zeros(len(scores[record.group]), dtype=bool)
            kept[list(record.indices)] = True
            assert scores[record.group][kept].min() > scores[record.group][~kept].max()


def test_rates_are_counted(vit: nn.Module) -> None:
    """With every branch run for half of the images, twice as much structure fits."""
    units = find_units(vit, ONE)
    tree, scores = Tree(units), scores_of(units, 1)
    rates = dict.fromkeys(units.branches, 0.5)
    alone = Projector(units, tree, scores, {}).project(Limits(0.4 * tree.total))
    gated = Projector(units, tree, scores, rates).project(Limits(0.4 * tree.total))
    sizes = [cost(units, Plan(records=tuple(p.records))).macs for p in (alone, gated)]
    assert sizes[1] > 1.5 * sizes[0]
    bounded = Projector(units, tree, scores, rates).project(Limits(0.4 * tree.total, static=0.5 * tree.total))
    assert cost(units, Plan(records=tuple(bounded.records))).macs <= 0.5 * tree.total


def test_params(vit: nn.Module) -> None:
    units = find_units(vit, ONE)
    tree = Tree(units, "params")
    found = Projector(units, tree, scores_of(units, 2), {}).project(Limits(0.6 * tree.total))
    assert 0.595 * tree.total < cost(units, Plan(records=tuple(found.records))).params <= 0.6 * tree.total


def test_out_of_reach(vit: nn.Module) -> None:
    units = find_units(vit, ONE)
    tree = Tree(units)
    with pytest.raises(UsdcoreError, match=r"can't be reached: with everything removed that may be, \d+\.\d% of the"):
        Projector(units, tree, scores_of(units, 0), {}).project(Limits(0.01 * tree.total))


def test_ties_fall_one_by_one(vit: nn.Module) -> None:
    units = find_units(vit, ONE)
    tree = Tree(units)
    scores = {name: np.ones(g.size) for name, g in units.groups.items() if g.reason is None}
    scores |= {name: np.asarray(1.0) for name in units.branches}
    found = Projector(units, tree, scores, {}).project(Limits(0.9 * tree.total))
    assert 0.85 * tree.total < found.after <= 0.9 * tree.total
    assert found.before == tree.total
