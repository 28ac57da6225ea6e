"""Neutral is identical (rule 1); what is off is not computed (rule 4); masked and skipping agree; costs are what is
executed.
"""

from __future__ import annotations

import copy

import pytest
import torch
from counting import counted_macs
from torch import nn
from zoo import INPUT, gap

from usdcore.costs import Tree
from usdcore.errors import UsdcoreError
from usdcore.executed import batch_macs
from usdcore.gates import Draw, ForwardState, Gate, Gating
from usdcore.runner import attach, detach, gating_of, set_mode
from usdcore.units import find_units

ONE = torch.zeros(1, *INPUT)


class FixedGate(Gate):
    """Given decisions, drawn at the entry of a block by a network that costs something."""

    def __init__(self, block: str, decisions: dict[str, torch.Tensor], width: int) -> None:
        super().__init__()
        self.tap, self.sites, self.scope = block, tuple(decisions), "sample"
        self.decisions = decisions
        self.network = nn.Linear(width, 2)
        self.network.macs = width * 2  # type: ignore[assignment]

    def draw(self, x_BNC: torch.Tensor | None, state: ForwardState) -> dict[str, Draw]:
        assert x_BNC is not None
        self.network(x_BNC.mean(1))
        return {site: Draw(keep) for site, keep in self.decisions.items()}

    def macs(self) -> float:
        return float(self.network.macs)  # type: ignore[arg-type]


def gated(model: nn.Module, per_sample: bool, seed: int = 0) -> nn.Module:
    model = copy.deepcopy(model)
    units = find_units(model, ONE)
    generator = torch.Generator().manual_seed(seed)
    gating = Gating()
    for block in units.blocks:
        shape = (5,) if per_sample else ()
        decisions = {b.name: (torch.rand(shape, generator=generator) < 0.6).float() for b in block.branches}
        gating.add(block.name.replace(".", "/"), FixedGate(block.name, decisions, block.width))
    attach(model, units, gating)
    return model.eval()


@pytest.mark.parametrize("training", [False, True])
def test_neutral_is_identical(model: nn.Module, fused: bool, images: torch.Tensor, training: bool) -> None:
    neutral = gated(model, per_sample=True)
    for gate in gating_of(neutral).all():  # type: ignore[union-attr]
        gate.neutral()
    with torch.no_grad():
        assert gap(neutral.train(training)(images), model.train(training)(images)) < 1e-5


@pytest.mark.parametrize("per_sample", [False, True])
def test_skipping_equals_masked(model: nn.Module, fused: bool, images: torch.Tensor, per_sample: bool) -> None:
    runner = gated(model, per_sample)
    with torch.no_grad():
        skipping = runner(images)
        set_mode(runner, "masked")
        assert gap(skipping, runner(images)) < 1e-5
        assert gap(skipping, model(images)) > 1e-3


@pytest.mark.parametrize("per_sample", [False, True])
@pytest.mark.parametrize("seed", range(4))
def test_executed_macs_equal_the_counter(vit: nn.Module, images: torch.Tensor, per_sample: bool, seed: int) -> None:
    runner = gated(vit, per_sample, seed)
    units = find_units(vit, ONE)
    counted = counted_macs(runner, images)
    gating = gating_of(runner)
    assert gating is not None
    assert batch_macs(units, gating.state.dynamic, gating.count_macs(), 5) == counted
    is_all_on = all(bool(keep.all()) for keep in gating.state.dynamic.values())
    assert is_all_on or counted < counted_macs(vit, images) + 5 * gating.count_macs()


def test_expected_cost_is_the_mean_of_the_samples_costs(vit: nn.Module) -> None:
    tree = Tree(find_units(vit, ONE))
    branch, heads = "blocks.1.attn", "blocks.1.attn:heads"
    run = torch.tensor([1.0, 0.0])
    kept = torch.tensor([[1.0, 0, 0, 0], [1.0, 1, 1, 1]])
    each = [tree.decided({branch: int(r), heads: int(k.sum())}) for r, k in zip(run, kept, strict=True)]
    expected = float(tree.expected({branch: run, heads: kept})) * tree.total
    assert expected == pytest.approx(sum(each) / 2, rel=1e-6)


def test_expected_cost_has_a_gradient(vit: nn.Module) -> None:
    tree = Tree(find_units(vit, ONE))
    keep = torch.full((4,), 0.5, requires_grad=True)
    tree.expected({"blocks.0.attn:heads": keep}).backward()
    share = find_units(vit, ONE).groups["blocks.0.attn:heads"].macs_per_entry / tree.total
    torch.testing.assert_close(keep.grad, torch.full((4,), share))


def test_detach_gives_the_host_back(vit: nn.Module, images: torch.Tensor) -> None:
    runner = gated(vit, per_sample=True)
    assert detach(runner) is not None
    assert torch.equal(runner(images), vit(images))
    assert set(runner.state_dict()) == set(vit.state_dict())
    assert not any("forward" in module.__dict__ for module in runner.modules())


def test_state_dict_names_stay(vit: nn.Module) -> None:
    names = set(gated(vit, per_sample=False).state_dict())
    assert set(vit.state_dict()) < names
    assert all(name.startswith("usdcore.") for name in names - set(vit.state_dict()))


def test_a_deepcopy_runs_on_its_own(vit: nn.Module, images: torch.Tensor) -> None:
    runner = gated(vit, per_sample=True)
    twin = copy.deepcopy(runner)
    for parameter in runner.parameters():
        nn.init.zeros_(parameter)
    assert twin(images).abs().max() > 0


def test_an_unknown_site_is_refused(vit: nn.Module) -> None:
    gating = Gating()
    gating.add("x", FixedGate("blocks.0", {"blocks.0.conv": torch.ones(())}, 48))
    with pytest.raises(UsdcoreError, match=r"no such branch, block or group in this model: blocks\.0\.conv"):
        attach(vit, find_units(vit, ONE), gating)


@pytest.mark.parametrize("per_sample", [False, True])
def test_skipping_under_bf16_autocast(vit: nn.Module, images: torch.Tensor, per_sample: bool) -> None:
    runner = gated(vit, per_sample)
    with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16):
        skipping = runner(images)
        set_mode(runner, "masked")
        assert gap(skipping.float(), runner(images).float()) < 0.05


class RowGate(Gate):
    """Per-sample decisions on a branch and on the heads inside it."""

    def __init__(self) -> None:
        super().__init__()
        self.sites, self.scope = ("blocks.0.attn", "blocks.0.attn:heads"), "sample"
        self.run = torch.tensor([1.0, 0.0, 1.0, 0.0, 1.0])
        self.heads = (torch.rand(5, 4, generator=torch.Generator().manual_seed(0)) < 0.5).float()

    def draw(self, x_BNC: torch.Tensor | None, state: ForwardState) -> dict[str, Draw]:
        return {"blocks.0.attn": Draw(self.run), "blocks.0.attn:heads": Draw(self.heads)}


def test_group_masks_follow_the_rows_that_run(vit: nn.Module, images: torch.Tensor) -> None:
    gating = Gating()
    gating.add("rows", RowGate())
    units = find_units(vit, ONE)
    attach(vit, units, gating)
    vit.eval()
    with torch.no_grad():
        skipping = vit(images)
        set_mode(vit, "masked")
        assert gap(skipping, vit(images)) < 1e-5
