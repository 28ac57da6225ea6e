"""Gates on groups with several mask points, or on channels that are not the last axis, act as removal does."""

from __future__ import annotations

import pytest
import timm
import torch
from exact import random_half
from torch import nn
from units.hosts import DIM, TOKENS, Layers
from units.rule_hosts import Bare, ConvFeed, ConvNet, Mixed, Squeeze, Talking
from zoo import gap, randomise

from usdcore.gates import Draw, ForwardState, Gate, Gating
from usdcore.plans import Plan
from usdcore.runner import attach, detach
from usdcore.surgery import shrink
from usdcore.units import find_units
from usdcore.units.types import Units

SWIN = {"img_size": 32, "window_size": 4, "embed_dim": 24, "depths": (2, 2), "num_heads": (2, 4), "num_classes": 5}
HOSTS = {
    "windows, each image several": (lambda: timm.create_model("swin_tiny_patch4_window7_224", **SWIN), (3, 32, 32)),
    "a bare weight": (lambda: Layers(Bare(), Bare()), (TOKENS, DIM)),
    "talking heads": (lambda: Layers(Talking("linear")), (TOKENS, DIM)),
    "talking heads by convolutions": (lambda: Layers(Talking("convolution")), (TOKENS, DIM)),
    "two readers": (lambda: Layers(Mixed()), (TOKENS, DIM)),
    "convolutions": (lambda: ConvNet(ConvFeed(), ConvFeed(Squeeze)), (3, 6, 6)),
}


class Half(Gate):
    """Off for what a plan removes; per sample: in the second of two images only."""

    def __init__(self, units: Units, plan: Plan, is_per_sample: bool) -> None:
        super().__init__()
        self.sites, self.scope = tuple(plan.kept_groups), "sample" if is_per_sample else "static"
        self.keeps = {}
        for name, indices in plan.kept_groups.items():
            keep = torch.zeros(units.groups[name].size)
            keep[list(indices)] = 1.0
            self.keeps[name] = torch.stack([torch.ones_like(keep), keep]) if is_per_sample else keep

    def draw(self, x_BNC: torch.Tensor | None, state: ForwardState) -> dict[str, Draw]:
        return {name: Draw(keep) for name, keep in self.keeps.items()}


@pytest.mark.parametrize("is_per_sample", [False, True])
@pytest.mark.parametrize("host", HOSTS)
def test_gates_equal_removal(host: str, is_per_sample: bool) -> None:
    make, shape = HOSTS[host]
    model: nn.Module = randomise(make()).double().eval()
    x, one = torch.randn(2, *shape, dtype=torch.float64), torch.zeros(1, *shape)
    units = find_units(model, one)
    plan = random_half(units)
    assert plan.records
    gating = Gating()
    gating.add("fixed", Half(units, plan, is_per_sample))
    with torch.no_grad():
        small, dense = shrink(model, plan, one)(x), model(x)
        attach(model, units, gating)
        masked = model(x)
        detach(model)
        assert torch.equal(model(x), dense)
    assert gap(masked[1], small[1]) < 1e-12
    assert gap(masked[0], dense[0] if is_per_sample else small[0]) < 1e-12
