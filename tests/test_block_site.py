"""A whole block as a site: its branches are gated together, per batch or per sample, masked and skipping alike."""

from __future__ import annotations

import pytest
import torch
from counting import counted_macs
from torch import Tensor, nn
from zoo import INPUT

from usdcore.costs import Tree
from usdcore.executed import batch_macs
from usdcore.gates import Draw, ForwardState, Gate, Gating, Scope
from usdcore.runner import attach, gating_of, set_mode
from usdcore.units import find_units


class Fixed(Gate):
    """Gives each site the keep that it was made with."""

    def __init__(self, keeps: dict[str, Tensor], scope: Scope = "sample", acts: bool = True) -> None:
        super().__init__()
        self.sites, self.keeps, self.scope, self.acts = tuple(keeps), keeps, scope, acts

    def draw(self, x_BNC: Tensor | None, state: ForwardState) -> dict[str, Draw]:
        return {site: Draw(keep, acts=self.acts) for site, keep in self.keeps.items()}


def gated(model: nn.Module, *gates: Gate) -> nn.Module:
    gating = Gating()
    for number, gate in enumerate(gates):
        gating.add(f"g{number}", gate)
    attach(model, find_units(model, torch.zeros(1, *INPUT)), gating)
    return model.eval()


PER_SAMPLE = torch.tensor([1.0, 0.0, 1.0, 0.0, 0.0])


@pytest.mark.parametrize(
    "keeps",
    [
        {"blocks.1": torch.tensor(0.0)},
        {"blocks.0": torch.tensor(1.0), "blocks.2": torch.tensor(0.0)},
        {"blocks.1": PER_SAMPLE},
        {"blocks.1": PER_SAMPLE, "blocks.1.mlp": torch.tensor([1.0, 1.0, 0.0, 1.0, 0.0])},
        {"blocks.1": PER_SAMPLE, "blocks.1.attn:heads": torch.rand(5, 4).round()},
    ],
    ids=["batch", "two", "sample", "branch inside", "group inside"],
)
def test_skipping_equals_masking_and_computes_what_it_says(
    vit: nn.Module, images: Tensor, keeps: dict[str, Tensor]
) -> None:
    model = gated(vit, Fixed(keeps))
    units = find_units(model, torch.zeros(1, *INPUT))
    set_mode(model, "masked")
    with torch.no_grad():
        masked = model(images)
        set_mode(model, "skipping")
        skipped = model(images)
    assert torch.allclose(masked, skipped, atol=1e-5 * float(masked.abs().max()))
    gating = gating_of(model)
    assert gating is not None
    assert batch_macs(units, gating.state.dynamic, 0, len(images), partly=gating.state.partly) == counted_macs(
        model, images
    )


def test_a_block_that_is_off_is_the_identity(vit: nn.Module, images: Tensor) -> None:
    with torch.no_grad():
        whole = vit(images)
        both = {"blocks.1.attn": torch.tensor(0.0), "blocks.1.mlp": torch.tensor(0.0)}
        by_branches = gated(vit, Fixed(both))(images)
        del vit._modules["usdcore"]
        vit._forward_pre_hooks.clear()
        by_block = gated(vit, Fixed({"blocks.1": torch.tensor(0.0)}))(images)
    assert torch.equal(by_branches, by_block)
    assert not torch.allclose(whole, by_block, atol=1e-3)


def test_the_mixture_is_that_of_the_whole_block(vit: nn.Module, images: Tensor) -> None:
    """d * block(x) + (1 - d) * x, in which the second branch sees the whole of the first."""
    block = vit.blocks[2]  # type: ignore[index]
    seen: list[Tensor] = []
    handle = block.register_forward_pre_hook(lambda module, args: seen.append(args[0].detach()))
    with torch.no_grad():
        vit(images)
        handle.remove()
        expected = 0.3 * block(seen[0]) + 0.7 * seen[0]
        model = gated(vit, Fixed({"blocks.2": torch.tensor(0.3)}))
        set_mode(model, "masked")
        outputs: list[Tensor] = []
        block.register_forward_hook(lambda module, args, out: outputs.append(out))
        model(images)
    assert torch.allclose(outputs[0], expected, atol=1e-5)


def test_the_cost_counts_a_block_on_each_of_its_branches(vit: nn.Module, images: Tensor) -> None:
    model = gated(vit, Fixed({"blocks.0": torch.tensor(0.5)}), Fixed({"blocks.0.mlp": torch.tensor(0.5)}))
    set_mode(model, "masked")
    with torch.no_grad():
        model(images)
    gating = gating_of(model)
    assert gating is not None
    keeps = gating.state.keeps()
    assert {name: float(keep) for name, keep in keeps.items()} == {"blocks.0.attn": 0.5, "blocks.0.mlp": 0.25}
    units = find_units(model, torch.zeros(1, *INPUT))
    expected = Tree(units).executed({"blocks.0.attn": 0.5, "blocks.0.mlp": 0.25}) / units.macs
    assert float(Tree(units).expected(keeps)) == pytest.approx(expected, rel=1e-5)


def test_a_draw_that_does_not_act_is_only_counted(vit: nn.Module, images: Tensor) -> None:
    with torch.no_grad():
        whole = vit(images)
        model = gated(vit, Fixed({"blocks.0.mlp:hidden": torch.zeros(192)}, acts=False))
        assert torch.equal(model(images), whole)
    gating = gating_of(model)
    assert gating is not None
    assert float(gating.state.keeps()["blocks.0.mlp:hidden"].sum()) == 0
