"""Masked equals shrunk (rule 2), predicted equals counted, and what can't be done says so."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from counting import counted_macs
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import nn
from zoo import INPUT, gap, randomise

from usdcore.costs import cost
from usdcore.errors import UsdcoreError
from usdcore.gates import Draw, ForwardState, Gate, Gating
from usdcore.nesting import continued
from usdcore.plans import Drop, Keep, Plan
from usdcore.runner import attach
from usdcore.surgery import shrink
from usdcore.units import find_units

ONE = torch.zeros(1, *INPUT)


class PlanGate(Gate):
    """Masks exactly what a plan removes."""

    def __init__(self, model: nn.Module, plan: Plan) -> None:
        super().__init__()
        units = find_units(model, ONE)
        self.masks = {name: torch.zeros(()) for name in plan.drops}
        for name, kept in plan.kept_groups.items():
            mask = torch.zeros(units.groups[name].size)
            mask[list(kept)] = 1
            self.masks[name] = mask
        self.sites = tuple(self.masks)

    def draw(self, x_BNC: torch.Tensor | None, state: ForwardState) -> dict[str, Draw]:
        return {site: Draw(mask) for site, mask in self.masks.items()}


def masked(model: nn.Module, plan: Plan) -> nn.Module:
    model = copy.deepcopy(model)
    gating = Gating()
    gate = PlanGate(model, plan)
    gating.add("plan", gate.to(next(model.parameters()).dtype))
    gate.masks = {site: mask.to(next(model.parameters()).dtype) for site, mask in gate.masks.items()}
    gating.mode = "masked"
    attach(model, find_units(model, ONE), gating)
    return model.eval()


def random_plan(model: nn.Module, seed: int) -> Plan:
    rng = np.random.default_rng(seed)
    units = find_units(model, ONE)
    records: list[Keep | Drop] = [Drop(branch=name) for name in units.branches if rng.random() < 0.15]
    for group in units.groups.values():
        if group.reason is None:
            kept = rng.random(group.size) < rng.uniform(0.2, 1.0)
            first = np.unique(np.zeros(group.size) if group.parent_of is None else group.parent_of, return_index=True)
            if not kept.any() or group.parent_of is not None:  # a dim in each head, as one of them may be kept alone
                kept[first[1]] = True
            records.append(Keep(group=group.name, indices=tuple(int(i) for i in np.flatnonzero(kept))))
    return Plan(records=tuple(records))


@pytest.mark.parametrize("seed", [0, 1])
def test_masked_equals_shrunk(model: nn.Module, fused: bool, images: torch.Tensor, seed: int) -> None:
    plan = random_plan(model, seed)
    small = shrink(model, plan, ONE)
    with torch.no_grad():
        assert gap(small(images), masked(model, plan)(images)) < 1e-4
    assert sum(p.numel() for p in small.parameters()) < sum(p.numel() for p in model.parameters())


def test_masked_equals_shrunk_in_double(model: nn.Module, images: torch.Tensor) -> None:
    model, images = model.double(), images.double()
    plan = random_plan(model, 2)
    with torch.no_grad():
        assert gap(shrink(model, plan, ONE.double())(images), masked(model, plan)(images)) < 1e-11


@pytest.mark.parametrize("kind", ["heads", "hidden"])
def test_wrong_indices_fail(model: nn.Module, images: torch.Tensor, kind: str) -> None:
    """The negative control: the same number of entries, but others."""
    units = find_units(model, ONE)
    groups = [g for g in units.groups.values() if g.kind == kind]
    right = Plan(records=tuple(Keep(group=g.name, indices=tuple(range(g.size // 2))) for g in groups))
    wrong = Plan(records=tuple(Keep(group=g.name, indices=tuple(range(g.size // 2, g.size // 2 * 2))) for g in groups))
    with torch.no_grad():
        assert gap(shrink(model, wrong, ONE)(images), masked(model, right)(images)) > 100 * 1e-4


@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(seed=st.integers(0, 2**32 - 1))
def test_prediction_equals_the_counter(vit: nn.Module, images: torch.Tensor, seed: int) -> None:
    plan = random_plan(vit, seed)
    small = shrink(vit, plan, ONE)
    predicted = cost(find_units(vit, ONE), plan)
    assert predicted.macs * len(images) == counted_macs(small, images)
    assert predicted.params == sum(p.numel() for p in small.parameters())


def test_every_kind_is_predicted(model: nn.Module, images: torch.Tensor) -> None:
    plan = random_plan(model, 5)
    small = shrink(model, plan, ONE)
    predicted = cost(find_units(model, ONE), plan)
    assert predicted.macs * len(images) == counted_macs(small, images)
    assert predicted.params == sum(p.numel() for p in small.parameters())


def test_plans_compose(vit: nn.Module, images: torch.Tensor) -> None:
    """Two cuts, the second in the first one's indices, equal their composition in base indices."""
    first = random_plan(vit, 7)
    once = shrink(vit, first, ONE)
    second = random_plan(once, 8)
    both = continued(first, second.records, find_units(once, ONE))
    with torch.no_grad():
        assert torch.equal(shrink(once, second, ONE)(images), shrink(vit, both, ONE)(images))


def test_the_model_is_left_as_it_was(vit: nn.Module, images: torch.Tensor) -> None:
    before = {name: tensor.clone() for name, tensor in vit.state_dict().items()}
    logits = vit(images)
    small = shrink(vit, random_plan(vit, 3), ONE)
    randomise(small, 9)
    assert torch.equal(vit(images), logits)
    assert all(torch.equal(before[name], tensor) for name, tensor in vit.state_dict().items())


def test_names_stay_and_it_trains(vit: nn.Module, images: torch.Tensor) -> None:
    small = shrink(vit, random_plan(vit, 3), ONE).train()
    assert set(small.state_dict()) <= set(vit.state_dict())
    small(images).sum().backward()
    assert all(p.grad is not None for p in small.parameters())
    assert small.forward_features(images).shape[-1] == vit.embed_dim


@pytest.mark.parametrize(
    ("record", "message"),
    [
        (Keep(group="blocks.0.atn:heads", indices=(0,)), "does not have: did you mean 'blocks.0.attn:heads'"),
        (Keep(group="blocks.0.attn:heads", indices=(0, 4)), "index 4 is out of range, the group has 4 entries"),
        (Drop(branch="blocks.9.attn"), "'blocks.9.attn', which this model does not have"),
    ],
)
def test_refusals(vit: nn.Module, record: Keep | Drop, message: str) -> None:
    with pytest.raises(UsdcoreError, match=message):
        shrink(vit, Plan(records=(record,)), ONE)


def test_everything_dropped_still_classifies(vit: nn.Module, images: torch.Tensor) -> None:
    plan = Plan(records=tuple(Drop(branch=name) for name in find_units(vit, ONE).branches))
    small = shrink(vit, plan, ONE)
    assert small(images).shape == (5, 7)
    assert cost(find_units(vit, ONE), plan).macs * 5 == counted_macs(small, images)
