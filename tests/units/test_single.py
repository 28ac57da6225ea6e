"""What is left of a group of which one entry is left, and what runs once for each image though it reads none."""

from __future__ import annotations

import pytest
import torch
from counting import counted_macs
from exact import check_exact
from torch import nn
from units.hosts import DIM, HEADS, INPUT, TOKENS, Layers
from units.rule_hosts import Bare, Biased, ConvNet, Pooled, Stem
from zoo import gap, randomise

from usdcore.costs import cost
from usdcore.executed import batch_macs
from usdcore.plans import Keep, Plan
from usdcore.surgery import shrink
from usdcore.units import find_units

IMAGE = torch.zeros(1, 3, 6, 6)


def test_a_latent_expanded_to_the_batch_costs_for_each_image() -> None:
    model = randomise(Layers(Pooled())).double().eval()
    units = find_units(model, INPUT)
    assert units.constant_macs == 0
    for batch in (1, 3):
        counted = counted_macs(model, torch.zeros(batch, TOKENS, DIM, dtype=torch.float64))
        assert counted == batch * cost(units).macs == batch_macs(units, {}, 0, batch)
    check_exact(model, torch.randn(3, TOKENS, DIM, dtype=torch.float64), ["layers.0:heads"])


@pytest.mark.parametrize("name", ["blocks.0.a:hidden", "blocks.0.b:hidden"])
def test_names_stay_when_one_entry_is_left(name: str) -> None:
    model = randomise(ConvNet(Stem())).double().eval()
    units = find_units(model, IMAGE)
    found = [group for group in units.groups if group.startswith("blocks.0")]
    assert found == ["blocks.0.a:hidden", "blocks.0.b:hidden"]
    if units.groups[name].reason is not None:
        assert "has entries of another group too" in (units.groups[name].reason or "")
        return
    plan = Plan(records=(Keep(group=name, indices=(2,)),))
    small = find_units(shrink(model, plan, IMAGE), IMAGE)
    expected = {group.name: 1 if group.name == name else group.size for group in units.groups.values()}
    assert {group.name: group.size for group in small.groups.values()} == expected


def test_one_head_is_known_beside_a_bias_that_a_network_makes() -> None:
    model = randomise(Layers(Biased("mlp", True))).double().eval()
    kept = Keep(group="layers.0:heads", indices=(1,))
    small = shrink(model, Plan(records=(kept,)), INPUT)
    units = find_units(small, INPUT)
    dims = units.groups["layers.0:qk_dims"]
    assert units.groups["layers.0:heads"].size == 1
    assert (dims.reason, dims.size) == (None, DIM // HEADS)
    smaller = shrink(small, Plan(records=(Keep(group="layers.0:qk_dims", indices=(0, 2)),)), INPUT)
    assert find_units(smaller, INPUT).groups["layers.0:qk_dims"].size == 2


def test_a_bare_weight_reads_the_entries() -> None:
    class Act(Bare):
        def __init__(self) -> None:
            super().__init__()
            self.act = nn.GELU()

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x + self.act(x @ self.up.T) @ self.down.T

    x = torch.randn(2, TOKENS, DIM, dtype=torch.float64)
    for block in (Bare, Act):
        model = randomise(Layers(block())).double().eval().requires_grad_(False)
        before = model(x)
        check_exact(model, x, ["layers.0:hidden"])
        assert gap(model(x), before) == 0
