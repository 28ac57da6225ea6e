"""A host that gates would not act on in training is found out when they are attached."""

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


class TwoWays(nn.Module):
    """Adds its branches with other code in training."""

    def __init__(self, block: Any) -> None:
        super().__init__()
        self.norm1, self.attn, self.norm2, self.mlp = block.norm1, block.attn, block.norm2, block.mlp

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self.training:  # noqa: SIM108
            x = x + self.attn(self.norm1(x))
        else:
            x = x + self.attn(self.norm1(x))
        return x + self.mlp(self.norm2(x))


def test_a_host_that_goes_around_its_gates_in_training_is_refused(vit: nn.Module) -> None:
    vit.blocks[1] = TwoWays(vit.blocks[1])  # type: ignore[index, operator]
    with pytest.raises(UsdcoreError, match=r"in training mode .* another way than past .* blocks\.1\.attn"):
        begin(vit)


def test_neutral_draws_are_ones() -> None:
    gate = Gate()
    gate.sites = ("a",)
    state = ForwardState()
    state.record(gate.neutral_draws(), is_static=True)
    assert state.keeps() == {"a": torch.ones(())}
    assert isinstance(state.draws["a"][0], Draw)
