"""Sizes in steps: which are kept, within the budget, whoever ranks and however things lie in each other."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import nn
from zoo import INPUT

from usdcore.costs import Tree, cost
from usdcore.errors import UsdcoreError
from usdcore.hooks import registry
from usdcore.plans import Plan
from usdcore.projection import Limits, Projector
from usdcore.session import Session
from usdcore.steps import rounded_sizes
from usdcore.strategy import Budget
from usdcore.surgery import shrink
from usdcore.units import find_units
from usdcore.units.types import Units

ONE = torch.zeros(1, *INPUT)
KINDS = [("heads", "hidden"), ("qk_dims", "v_dims", "hidden"), ("heads", "qk_dims", "v_dims", "hidden")]


def scores_of(units: Units, kinds: tuple[str, ...], seed: int) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    return {g.name: rng.normal(size=g.size) + rng.normal() / 2 for g in units.groups.values() if g.kind in kinds}


def kept(units: Units, plan: Plan) -> dict[str, np.ndarray]:
    """Which entries are left of each group: those in an entry that is gone are gone."""
    found = {name: np.zeros(group.size, dtype=bool) for name, group in units.groups.items()}
    for name, keep in found.items():
        keep[list(plan.kept_groups.get(name, range(len(keep))))] = True
    for group in units.groups.values():
        if group.parent is not None:
            found[group.name] &= found[group.parent][group.parent_of]
    return found


@settings(max_examples=12, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    seed=st.integers(0, 2**32 - 1),
    target=st.floats(0.35, 0.95),
    step=st.sampled_from([4, 8, 12]),
    kinds=st.sampled_from(KINDS),
    metric=st.sampled_from(["macs", "params"]),
)
def test_sizes_are_multiples_and_the_budget_is_met_from_below(
    vit: nn.Module, seed: int, target: float, step: int, kinds: tuple[str, ...], metric: Any
) -> None:
    units = find_units(vit, ONE)
    tree, scores = Tree(units, metric), scores_of(units, kinds, seed)
    sizes = rounded_sizes(units, scores, step)
    assert set(sizes) == {name for name in scores if units.groups[name].kind != "heads"}
    found = Projector(units, tree, scores, {}, sizes).project(Limits(target * tree.total))
    plan = Plan(records=tuple(found.records))
    left = kept(units, plan)
    for name in sizes:
        group = units.groups[name]
        whole = group.size if group.parent is None else left[group.parent][group.parent_of].sum()
        assert left[name].sum() % step == 0 or left[name].sum() == whole
    for group in units.groups.values():
        if group.parent is not None:  # a head that stays holds something
            heads = np.unique(group.parent_of[left[group.name]])
            assert set(heads) == set(np.flatnonzero(left[group.parent]))
    exact = getattr(cost(units, plan), metric)
    assert exact == found.after <= target * tree.total
    grown = [tree.entry_cost(units.groups[name]) for name in sizes if not left[name].all()]
    if grown and all(left[name].all() for name in scores if name not in sizes):
        assert target * tree.total - exact < step * max(grown)


def test_it_shrinks_to_these_sizes(vit: nn.Module) -> None:
    units = find_units(vit, ONE)
    scores = scores_of(units, KINDS[2], 3)
    projector = Projector(units, Tree(units), scores, {}, rounded_sizes(units, scores, 12))
    plan = Plan(records=tuple(projector.project(Limits(0.6 * Tree(units).total)).records))
    small = shrink(vit, plan, ONE)
    for block in small.blocks:
        assert block.mlp.fc1.out_features % 12 == 0
        assert block.attn.proj.weight.shape[1] % 12 == 0
        assert block.attn.qkv.weight.shape[0] % 12 == 0
    assert find_units(small, ONE).macs == cost(units, plan).macs


def test_at_equal_limits_rounded_plans_spend_as_much(vit: nn.Module) -> None:
    """To a step of one layer; and what the search came to by its own signs is not the rounding's."""
    units = find_units(vit, ONE)
    tree, scores = Tree(units), scores_of(units, KINDS[1], 0)
    plain, rounded = (
        Projector(units, tree, scores, {}, rounded_sizes(units, scores, step)).project(Limits(0.5 * tree.total))
        for step in (1, 8)
    )
    assert plain.after - rounded.after < 8 * max(tree.entry_cost(units.groups[name]) for name in scores)
    assert plain.before == rounded.before


@pytest.mark.parametrize("name", ["prune", "usdc-static", "uvc"])
def test_every_strategys_plan_keeps_to_them(
    vit: nn.Module, name: str, images: torch.Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    session = Session(vit, ONE, Budget("macs", 0.6, batch_size=4, round_to=12))
    config = registry().config("strategy", name).model_validate({"use": name})
    session.begin_phase([registry().load("strategy", name)(config)])
    with torch.no_grad():
        session.begin_step(0, 1, images=images, lr=0.1)
        session.losses(session.model.train()(images), torch.zeros(len(images), dtype=torch.long))
    for strategy in session.strategies:
        own = replace(strategy.decide(), ranking=True, within=None)  # a search this short is nowhere near its budget
        monkeypatch.setattr(strategy, "decide", lambda own=own: own)
    session.end_phase(lambda: [images])
    hidden = [group.size for group in session.units.groups.values() if group.kind == "hidden"]
    assert any(size < 192 for size in hidden)
    assert all(size % 12 == 0 for size in hidden)


def test_a_budget_below_the_least_that_steps_leave_is_refused_at_once(vit: nn.Module) -> None:
    prune = registry().load("strategy", "prune")
    options = registry().config("strategy", "prune").model_validate({"use": "prune", "heads": False})
    Session(vit, ONE, Budget("macs", 0.5, batch_size=4)).begin_phase([prune(options)])
    with pytest.raises(UsdcoreError, match="can't be reached"):
        Session(vit, ONE, Budget("macs", 0.5, batch_size=4, round_to=96)).begin_phase([prune(options)])
