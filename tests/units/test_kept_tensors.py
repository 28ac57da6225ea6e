"""What a host keeps outside of the recorded copy stays fit for training."""

from __future__ import annotations

from functools import lru_cache

import torch
from torch import Tensor, nn

from usdcore.units import find_units


@lru_cache
def _table(n: int) -> Tensor:
    return torch.arange(n)


@lru_cache
def _scale(n: int) -> Tensor:
    return torch.tensor([0.5] * n)


@lru_cache
def _grid(n: int) -> Tensor:
    axes = torch.meshgrid(torch.arange(n), torch.arange(n), indexing="ij")
    return torch.stack(axes).flatten(1).float().sum(0) / n


class Host(nn.Module):
    """Reads tables that cached functions make on the device that is the default."""

    def __init__(self) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(8, 16), nn.Linear(16, 8)
        self.positions = nn.Parameter(torch.zeros(4, 8))

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.positions[_table(4).to(x.device)]
        x = x * _scale(8).to(x.device) * _grid(2).to(x.device).view(1, -1, 1)
        return x + self.down(torch.relu(self.up(x)))


def test_tensors_that_a_host_keeps_can_be_trained_with_afterwards() -> None:
    host = Host()
    (unit,) = find_units(host, torch.zeros(1, 4, 8)).ffn
    assert unit.groups[0].reason is None
    assert not any(table.is_inference() or table.requires_grad for table in (_table(4), _scale(8), _grid(2)))
    host(torch.randn(2, 4, 8)).sum().backward()
    assert host.positions.grad is not None
