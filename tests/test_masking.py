"""Static masks in a training step act on weights: the same outputs and gradients, and nothing more kept for them."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn
from zoo import INPUT, gap

from usdcore.gates import Draw, ForwardState, Gate, Gating
from usdcore.runner import attach, set_mode
from usdcore.units import find_units

SITES = ("blocks.0.attn:heads", "blocks.0.attn:v_dims", "blocks.1.mlp:hidden", "blocks.2.mlp:hidden")


class Learned(Gate):
    """A factor for each entry of some groups; of the last one, for each image."""

    def __init__(self, sizes: dict[str, int], batch: int | None = None) -> None:
        super().__init__()
        self.sites, self.batch = tuple(sizes), batch
        values = torch.rand(sum(sizes.values()), generator=torch.Generator().manual_seed(0))
        self.factors, self.sizes = nn.Parameter(values), list(sizes.values())

    def draw(self, x_BNC: Tensor | None, state: ForwardState) -> dict[str, Draw]:
        parts = self.factors.split(self.sizes)
        rows = [part if self.batch is None else part.expand(self.batch, -1) for part in parts]
        return {site: Draw(part) for site, part in zip(self.sites, rows, strict=True)}


def gated(model: nn.Module, batch: int | None = None) -> tuple[nn.Module, Learned]:
    runner = copy.deepcopy(model)
    units, gating = find_units(runner, torch.zeros(1, *INPUT)), Gating()
    gate = Learned({site: units.groups[site].size for site in SITES}, batch)
    gating.add("learned", gate)
    attach(runner, units, gating)
    return runner, gate


def kept(model: nn.Module, images: Tensor) -> int:
    """Bytes that a forward keeps for the backward pass, parameters not counted."""
    own, found = {p.untyped_storage().data_ptr() for p in model.parameters()}, []

    def pack(tensor: Tensor) -> Tensor:
        found.append(tensor)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        model(images)
    sizes = {t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in found}
    return sum(size for place, size in sizes.items() if place not in own)


@pytest.mark.parametrize("batch", [None, 16])
def test_a_training_step_is_that_of_masked_activations(vit: nn.Module, batch: int | None) -> None:
    images = torch.randn(16, *INPUT, generator=torch.Generator().manual_seed(1))
    training, first = gated(vit.double(), batch)
    masked, second = gated(vit, batch)
    set_mode(masked, "masked")
    outputs = training.train()(images.double()), masked.eval()(images.double())
    one, other = (output.detach() for output in outputs)
    assert gap(one, other) < 1e-10
    assert gap(one, vit(images.double()).detach()) > 1e-3
    for output in outputs:
        output.square().sum().backward()
    pairs = zip(training.named_parameters(), masked.parameters(), strict=True)
    for (name, mine), theirs in pairs:
        torch.testing.assert_close(mine.grad, theirs.grad, msg=name)
    assert first.factors.grad is not None
    assert first.factors.grad.abs().min() > 0
    torch.testing.assert_close(first.factors.grad, second.factors.grad)


def test_nothing_more_of_a_batch_is_kept_for_the_backward_pass(vit: nn.Module) -> None:
    images = torch.randn(64, *INPUT)
    plain, static, per_image = vit.train(), gated(vit)[0].train(), gated(vit, 64)[0].train()
    dense = kept(plain, images)
    assert kept(static, images) < 1.01 * dense
    assert kept(per_image, images) > 1.1 * dense
