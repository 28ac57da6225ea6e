"""A check that needs no structure: masking one entry makes the gradient of exactly its members vanish."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn
from zoo import INPUT

from usdcore.units import find_units
from usdcore.units.types import Group

ONE = torch.zeros(1, *INPUT)


def gradients(model: nn.Module, group: Group, entry: int | None) -> dict[str, np.ndarray]:  # type: ignore[type-arg]
    """The gradient of every parameter, with one entry masked or with none."""
    (mask,) = group.masks
    factor = torch.from_numpy((mask.entry_of != entry).astype(float))
    module = model.get_submodule(mask.module)
    handle = module.register_forward_pre_hook(lambda _, args: (args[0] * factor,))
    model.zero_grad()
    images = torch.randn(4, *INPUT, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    out = model(images)
    torch.stack([o.pow(2).sum() for o in (out if isinstance(out, tuple) else (out,))]).sum().backward()
    handle.remove()
    return {name: p.grad.numpy().copy() for name, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("kind", ["heads", "hidden"])
def test_exactly_the_members_lose_their_gradient(model: nn.Module, fused: bool, kind: str) -> None:
    model = model.double()
    group = next(g for g in find_units(model, ONE).groups.values() if g.kind == kind and g.name.startswith("blocks.1"))
    dense = gradients(model, group, None)
    for entry in (0, group.size - 1):
        masked = gradients(model, group, entry)
        expected = {name: np.zeros(found.shape, bool) for name, found in masked.items()}
        for member in group.members:
            index: list[object] = [slice(None)] * expected[member.tensor].ndim
            index[member.axis] = np.flatnonzero(member.entry_of == entry)
            expected[member.tensor][tuple(index)] = True  # type: ignore[index]
        for name, gradient in masked.items():
            # A bias of the keys has no gradient in any head (softmax does not see it): only rounding is left of it.
            counts = np.abs(dense[name]) > 1e-9 * np.abs(dense[name]).max()
            assert np.array_equal((gradient == 0)[counts], expected[name][counts]), name
            assert not gradient[expected[name]].any(), name
