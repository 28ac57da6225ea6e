"""A host whose training forward is more than its branches is found out when gates are attached."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn
from zoo import INPUT

from usdcore.errors import UsdcoreError
from usdcore.gates import Draw, ForwardState, Gate
from usdcore.session import Session
from usdcore.strategy import Attachment, Budget, Strategy


class Everywhere(Strategy):
    """A gate that is always on, at every branch."""

    def attach(self, site: Attachment) -> None:
        gate = Gate()
        gate.sites = tuple(site.units.branches)
        site.gate("all", gate)


class Config:
    use = "everywhere"


def begin(model: nn.Module) -> None:
    Session(model, torch.zeros(1, *INPUT), Budget("macs", 0.5, 1)).begin_phase([Everywhere(Config())])


def test_a_plain_host_passes_and_is_left_as_it_was(vit: nn.Module) -> None:
    state = torch.random.get_rng_state()
    begin(vit)
    assert torch.equal(state, torch.random.get_rng_state())
    assert not vit.training


def test_a_host_that_scales_in_training_is_refused(vit: nn.Module) -> None:
    block: Any = vit.blocks[1]  # type: ignore[index]

    class Scaled(type(block)):  # type: ignore[misc]
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            out = super().forward(x)
            return out * 1.1 if self.training else out

    block.__class__ = Scaled
    with pytest.raises(UsdcoreError, match="in training mode this model does something beside the sum of its residual"):
        begin(vit)


def test_neutral_draws_are_ones() -> None:
    gate = Gate()
    gate.sites = ("a",)
    state = ForwardState()
    state.record(gate.neutral_draws(), is_static=True)
    assert state.keeps() == {"a": torch.ones(())}
    assert isinstance(state.draws["a"][0], Draw)
