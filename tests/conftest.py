"""Fixtures that every test may ask for."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from timm.layers import set_fused_attn
from torch import nn
from zoo import INPUT, KINDS, randomise


@pytest.fixture(params=[True, False], ids=["fused", "unfused"])
def fused(request: pytest.FixtureRequest) -> Iterator[bool]:
    """Both ways in which timm computes attention."""
    set_fused_attn(request.param)
    yield request.param
    set_fused_attn(True)


@pytest.fixture(params=list(KINDS))
def model(request: pytest.FixtureRequest) -> nn.Module:
    """Each kind, randomised, in evaluation mode; its modules ask how to compute attention when they are made."""
    if "fused" in request.fixturenames:
        request.getfixturevalue("fused")
    torch.manual_seed(0)
    return randomise(KINDS[request.param]()).eval()


@pytest.fixture
def vit() -> nn.Module:
    """One plain ViT."""
    torch.manual_seed(0)
    return randomise(KINDS["vit"]()).eval()


@pytest.fixture
def images() -> torch.Tensor:
    """A batch of 5 random images."""
    return torch.randn(5, *INPUT, generator=torch.Generator().manual_seed(1))
