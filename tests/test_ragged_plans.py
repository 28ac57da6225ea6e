"""Heads and the dims inside them: soft and sampled costs, projection onto a budget, plans one after another."""

from __future__ import annotations

import copy
import itertools
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from test_ragged import fast, found, keep, one_block, ragged_plan, seeds
from test_surgery import ONE
from torch import Tensor, nn

from usdcore.costs import Tree, cost, fewest
from usdcore.errors import UsdcoreError
from usdcore.nesting import continued
from usdcore.plans import Keep, Plan
from usdcore.projection import Limits, Projector
from usdcore.session import Session
from usdcore.strategy import Budget, Decision, Strategy
from usdcore.surgery import shrink
from usdcore.units import find_units
from usdcore.units.types import Units

# --- cost of soft and sampled decisions


@fast
@given(seed=seeds)
def test_expected_equals_decided(seed: int) -> None:
    rng = np.random.default_rng(seed)
    units = found(seed % 3)
    for metric in ("macs", "params"):
        tree = Tree(units, metric)  # type: ignore[arg-type]
        totals, keeps, plans = [], {}, []
        for sample in range(2):
            records = []
            for parent, inside in units.nested.items():
                for name in (parent, *(group.name for group in inside)):
                    n = units.groups[name].size
                    mask = rng.random(n) < 0.6
                    mask[:] |= not mask.any()
                    keeps.setdefault(name, []).append(torch.from_numpy(mask).float())
                    records.append(keep(name, np.flatnonzero(mask)))
            plans.append(Plan(records=tuple(records)))
            totals.append(getattr(cost(units, plans[sample]), metric))
        one = tree.expected({name: masks[0] for name, masks in keeps.items()})
        assert float(one) * tree.total == pytest.approx(totals[0], rel=1e-5)
        both = tree.expected({name: torch.stack(masks) for name, masks in keeps.items()})
        assert float(both) * tree.total == pytest.approx(sum(totals) / 2, rel=1e-5)
        alone = tree.expected({name: masks[0] for name, masks in keeps.items() if name.endswith("heads")})
        heads = Plan(records=tuple(r for r in plans[0].records if isinstance(r, Keep) and r.group.endswith("heads")))
        assert float(alone) * tree.total == pytest.approx(getattr(cost(units, heads), metric), rel=1e-5)


def test_the_cost_has_a_gradient_in_both(vit: nn.Module) -> None:
    units = find_units(vit, ONE)
    tree = Tree(units)
    heads = torch.tensor([1.0, 0.5, 0.0, 1.0], requires_grad=True)
    dims = torch.full((48,), 0.5, requires_grad=True)
    tree.expected({"blocks.0.attn:heads": heads, "blocks.0.attn:v_dims": dims}).backward()
    group = units.groups["blocks.0.attn:heads"]
    each = units.groups["blocks.0.attn:v_dims"].macs_per_entry
    assert each == units.groups["blocks.0.attn:qk_dims"].macs_per_entry
    assert heads.grad is not None
    assert dims.grad is not None
    torch.testing.assert_close(heads.grad, torch.full((4,), (group.own_macs + (6 + 12) * each) / tree.total))
    torch.testing.assert_close(dims.grad, heads.detach().repeat_interleave(12) * each / tree.total)


def test_counts(vit: nn.Module) -> None:
    units = find_units(vit, ONE)
    tree, own = Tree(units), units.groups["blocks.0.attn:heads"].own_macs
    heads, dims, qk = "blocks.0.attn:heads", "blocks.0.attn:v_dims", "blocks.0.attn:qk_dims"
    each = units.groups[dims].macs_per_entry
    gone = 2 * own + 24 * each  # two heads with their q and k dims
    assert tree.total - tree.decided({heads: 2}) == gone + 24 * each
    assert tree.total - tree.decided({heads: 2, dims: 5}) == gone + 43 * each
    assert tree.total - tree.decided({heads: 2, dims: 5, qk: 3}) == 2 * own + (43 + 45) * each
    assert tree.total - tree.decided({dims: 5}) == 43 * each
    half = tree.executed({"blocks.0.attn": 0.5}, {heads: 2, dims: 5})
    assert fewest(units, {heads, dims}) == {heads: 1, dims: 1}
    hidden = "blocks.1.mlp:hidden"
    assert fewest(units, {dims, qk, hidden, "blocks.1.mlp"}) == {dims: 4, qk: 4, hidden: 1}
    assert tree.total - half == pytest.approx(
        0.5 * (tree.total - tree.decided({"blocks.0.attn": 0})) + 0.5 * (gone + 43 * each)
    )


# --- from scores to a plan


def random_scores(units: Units, seed: int, kinds: tuple[str, ...]) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    groups = [g for g in units.groups.values() if g.reason is None and g.kind in kinds]
    return {g.name: rng.normal(size=g.size) + rng.normal() for g in groups}


@fast
@given(
    seed=seeds,
    kinds=st.sampled_from(
        [
            ("heads", "v_dims", "hidden"),
            ("qk_dims", "v_dims", "hidden"),
            ("heads", "qk_dims"),
            ("heads", "hidden"),
            ("v_dims",),
        ]
    ),
    share=st.floats(0.05, 0.95),
    metric=st.sampled_from(["macs", "params"]),
)
def test_the_budget_is_met(seed: int, kinds: tuple[str, ...], share: float, metric: str) -> None:
    units = found(seed % 3)
    tree = Tree(units, metric)  # type: ignore[arg-type]
    scores = random_scores(units, seed, kinds)
    projector = Projector(units, tree, scores, {})
    least = projector.spent(projector.choices.without(projector.choices.count))
    target = least + share * (tree.total - least)
    projection = projector.project(Limits(target))
    plan = Plan(records=tuple(projection.records))
    assert getattr(cost(units, plan), metric) == projection.after <= target
    if _has_small_change(units, plan):
        assert target - projection.after < 0.005 * tree.total
    for parent, group in ((parent, group) for parent, inside in units.nested.items() for group in inside):
        assert group.parent_of is not None
        before, left = set(group.parent_of.tolist()), plan.keep(parent)
        after = {int(group.parent_of[i]) for i in plan.keep(group.name) or range(group.size)}
        heads = before if left is None else before & set(left)
        assert after == heads or (plan.keep(group.name) is None and after >= heads)
    spent = [projector.spent(projector.choices.without(n)) for n in range(0, projector.choices.count + 1, 7)]
    assert all(b <= a for a, b in itertools.pairwise(spent))


def _has_small_change(units: Units, plan: Plan) -> bool:
    """Whether something smaller than a head is gone that could come back."""
    for group in units.groups.values():
        own, parents = plan.keep(group.name), plan.keep(group.parent or "")
        if group.kind != "heads" and own is not None:
            could = np.arange(group.size) if parents is None else np.flatnonzero(np.isin(group.parent_of, parents))
            if len(own) < len(could):
                return True
    return False


# --- plans one after another


@settings(fast, max_examples=4)
@given(seed=seeds)
@example(seed=32)  # one channel is left for all heads
def test_many_steps_equal_one(images: Tensor, seed: int) -> None:
    """Heads and dims, again and again, in the indices of the model of the day."""
    rng = np.random.default_rng(seed)
    plan, model, units = Plan(), one_block(), found(0)
    for _ in range(3):
        step = ragged_plan(units, int(rng.integers(2**32)), heads=bool(rng.random() < 0.7))
        chosen = [record for record in step.records if rng.random() < 0.7]
        plan = continued(plan, chosen, units)
        model = shrink(model, Plan(records=tuple(chosen)), ONE)
        units = find_units(model, ONE)
    assert cost(found(0), plan) == cost(units)
    with torch.no_grad():
        assert torch.equal(shrink(one_block(), plan, ONE)(images), model(images))


def test_hand_written_plans_are_understood(vit: nn.Module, images: Tensor) -> None:
    """Dims of removed heads were named, or nothing was said of dims at all."""
    heads, dims = "blocks.0.attn:heads", "blocks.0.attn:v_dims"
    for first in (
        Plan(records=(keep(heads, [1, 3]), keep(dims, range(0, 48, 2)))),
        Plan(records=(keep(heads, [1, 3]),)),
    ):
        once = shrink(vit, first, ONE)
        then = keep(dims, [0, 2, 3, 11])
        both = continued(first, [then], find_units(once, ONE))
        assert cost(find_units(vit, ONE), both) == cost(find_units(once, ONE), Plan(records=(then,)))
        with torch.no_grad():
            assert torch.equal(shrink(vit, both, ONE)(images), shrink(once, Plan(records=(then,)), ONE)(images))


def test_a_plan_alone_can_not_tell(vit: nn.Module) -> None:
    first = Plan(records=(keep("blocks.0.attn:heads", [1, 3]),))
    dims = keep("blocks.0.attn:v_dims", [0])
    with pytest.raises(UsdcoreError, match=r"use usdcore.nesting.continued"):
        first.then([dims])
    with pytest.raises(UsdcoreError, match="give the plan that the model was made with"):
        continued(first, [dims], find_units(vit, ONE))
    with pytest.raises(UsdcoreError, match="index 24 is out of range, 24 entries are left"):
        continued(first, [keep("blocks.0.attn:v_dims", [24])], find_units(shrink(vit, first, ONE), ONE))


class Random(Strategy):
    """Scores groups of some kinds at random."""

    def __init__(self, seed: int, *kinds: str) -> None:
        super().__init__(SimpleNamespace(use=f"random{seed}"))
        self.seed, self.kinds = seed, kinds

    def attach(self, site: object) -> None:
        self.units = site.units  # type: ignore[attr-defined]

    def decide(self) -> Decision:
        scores = random_scores(self.units, self.seed, self.kinds)
        return Decision({name: torch.from_numpy(s) for name, s in scores.items()})


@pytest.mark.parametrize(
    ("first", "second"),
    [
        (("heads", "hidden"), ("v_dims", "hidden")),
        (("v_dims",), ("heads",)),
        (("heads", "v_dims"), ("heads", "v_dims", "hidden")),
    ],
)
def test_a_session_of_phases(vit: nn.Module, images: Tensor, first: tuple[str, ...], second: tuple[str, ...]) -> None:
    host = copy.deepcopy(vit)
    session = Session(vit, ONE, Budget("macs", 0.9, batch_size=5))
    for seed, kinds, target in ((0, first, 0.93), (1, second, 0.86)):
        session.budget = Budget("macs", target, batch_size=5)
        session.begin_phase([Random(seed, *kinds)])
        session.end_phase(lambda: iter([images]))
    assert cost(find_units(host, ONE), session.plan) == cost(session.units)
    with torch.no_grad():
        assert torch.equal(shrink(host, session.plan, ONE)(images), session.model.eval()(images))
