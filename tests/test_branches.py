"""Branches are gated and removed in the host's own code, whatever its style: what is off is not computed, and what is
computed is what the host computes.
"""

from __future__ import annotations

import copy
import pickle
import traceback
from typing import Any

import pytest
import timm
import torch
from branch_hosts import DIM, GATEABLE, REFUSED, Plain, Stack, Statements, Two
from counting import counted_macs
from torch import Tensor, nn
from zoo import gap, randomise

from usdcore.costs import cost
from usdcore.errors import UsdcoreError
from usdcore.executed import batch_macs
from usdcore.gates import Draw, ForwardState, Gate, Gating
from usdcore.plans import Drop, Plan
from usdcore.runner import attach, detach, gating_of, set_mode
from usdcore.surgery import shrink
from usdcore.units import find_units
from usdcore.units.types import Units

ONE = torch.zeros(1, 6, DIM)
BATCH = 5


class Given(Gate):
    """Given decisions."""

    def __init__(self, keeps: dict[str, Tensor]) -> None:
        super().__init__()
        self.sites, self.keeps, self.scope = tuple(keeps), keeps, "sample"

    def draw(self, x_BNC: Tensor | None, state: ForwardState) -> dict[str, Draw]:
        return {site: Draw(keep) for site, keep in self.keeps.items()}


def tokens(batch: int = BATCH) -> Tensor:
    return torch.randn(batch, 6, DIM, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


def host(kind: type[Two]) -> nn.Module:
    return randomise(Stack(kind(), kind())).double().eval()


def gated(model: nn.Module, units: Units, per_sample: bool, seed: int = 0) -> nn.Module:
    generator = torch.Generator().manual_seed(seed)
    shape = (BATCH,) if per_sample else ()
    names = [branch.name for branch in units.branches.values() if branch.reason is None]
    keeps = {name: (torch.rand(shape, generator=generator) < 0.5).double() for name in names}
    gating = Gating()
    gating.add("g", Given(keeps))
    model = copy.deepcopy(model)
    attach(model, units, gating)
    return model.eval()


@pytest.mark.parametrize("per_sample", [False, True])
@pytest.mark.parametrize("kind", GATEABLE)
def test_gates_in_any_style(kind: type[Two], per_sample: bool) -> None:
    model, x = host(kind), tokens()
    units = find_units(model, ONE)
    assert [branch.reason for branch in units.branches.values()] == [None] * 4
    runner = gated(model, units, per_sample)
    keeps = gating_of(runner).gates["g"].keeps  # type: ignore[union-attr, union-attr]
    with torch.no_grad():
        skipping = runner(x)
        set_mode(runner, "masked")
        assert gap(skipping, runner(x)) < 1e-12
        each = [_by_hand(model, units, x[i : i + 1], keeps, i if per_sample else None) for i in range(BATCH)]
        assert gap(skipping, torch.cat(each)) < 1e-12
        assert gap(skipping, model(x)) > 1e-3
        set_mode(runner, "auto")
        assert counted_macs(runner, x) == batch_macs(units, gating_of(runner).state.dynamic, 0, BATCH)  # type: ignore[union-attr]


def _by_hand(model: nn.Module, units: Units, x: Tensor, keeps: dict[str, Tensor], row: int | None) -> Tensor:
    """What one sample gives when the branches that are off for it are removed."""
    off = [name for name, keep in keeps.items() if not (keep if row is None else keep[row])]
    plan = Plan(records=tuple(Drop(branch=name) for name in off))
    out: Tensor = shrink(model, plan, ONE)(x)
    return out


@pytest.mark.parametrize("kind", GATEABLE)
def test_a_removed_branch_takes_its_tensors_along(kind: type[Two]) -> None:
    model, x = host(kind), tokens()
    units = find_units(model, ONE)
    name = next(iter(units.branches))
    plan = Plan(records=(Drop(branch=name),))
    small = shrink(model, plan, ONE)
    found = find_units(small, ONE)
    predicted = cost(units, plan)
    assert predicted.params == sum(p.numel() for p in small.parameters()) < units.params
    assert predicted.macs == found.macs
    assert counted_macs(small, x) == BATCH * predicted.macs
    with torch.no_grad():
        expected = small(x)
        assert gap(expected, model(x)) > 1e-3
        assert torch.equal(copy.deepcopy(small)(x), expected)
        assert torch.equal(pickle.loads(pickle.dumps(small))(x), expected)
        again = shrink(small, Plan(records=(Drop(branch=list(found.branches)[-1]),)), ONE)
        assert counted_macs(again, x) < counted_macs(small, x)
    assert isinstance(small.layers[0], kind)  # type: ignore[index]
    assert list(find_units(again, ONE).branches) == list(found.branches)[:-1]


@pytest.mark.parametrize(("kind", "reason"), REFUSED.items())
def test_refused_with_a_reason(kind: type[Two], reason: str) -> None:
    units = find_units(host(kind), ONE)
    assert any(reason in (branch.reason or "") for branch in units.branches.values()), units.branches


@pytest.mark.parametrize("kind", GATEABLE)
def test_a_detached_host_is_the_host_again(kind: type[Two]) -> None:
    model, x = host(kind), tokens()
    runner = gated(model, find_units(model, ONE), per_sample=True)
    detach(runner)
    assert [type(m) for m in runner.modules()] == [type(m) for m in model.modules()]
    assert list(runner.state_dict()) == list(model.state_dict())
    assert torch.equal(runner(x), model(x))


def test_gradients_are_those_of_the_host() -> None:
    model, x = host(Statements), tokens()
    units = find_units(model, ONE)
    runner = gated(model, units, per_sample=False)
    for gate in gating_of(runner).all():  # type: ignore[union-attr]
        gate.neutral()
    for m in (model, runner):
        m.train()(x).square().sum().backward()
    for (name, a), b in zip(model.named_parameters(), runner.parameters(), strict=True):
        if "post" not in name:
            assert torch.allclose(a.grad, b.grad), name  # type: ignore[arg-type]


def test_an_error_in_rewritten_code_shows_the_hosts_line() -> None:
    model = host(Statements)
    runner = gated(model, find_units(model, ONE), per_sample=False)
    runner.layers[0].gamma = nn.Parameter(torch.ones(DIM + 1))  # type: ignore[index, union-attr]
    set_mode(runner, "masked")
    with pytest.raises(RuntimeError) as caught:
        runner(tokens())
    assert "y = self.gamma * y" in "".join(traceback.format_tb(caught.value.__traceback__))


def test_a_mask_for_each_image_is_refused_where_rows_are_skipped() -> None:
    class Masked(Plain):
        def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
            x = x + (self.a(x) if mask is None else self.a(x) * mask)
            return x + self.b(x)

    model = randomise(Stack(Masked())).double().eval()
    runner = gated(model, find_units(model, ONE), per_sample=True)
    gating_of(runner).begin(BATCH)  # type: ignore[union-attr]
    with pytest.raises(UsdcoreError, match="called with more than the stream"):
        runner.layers[0](tokens(), torch.ones(BATCH, 1, 1))  # type: ignore[operator, index]


STAGES = {"depths": (2, 2), "num_heads": (2, 2)}
FAMILIES: dict[str, dict[str, Any]] = {
    "beit_base_patch16_224": {"img_size": 32, "patch_size": 8, "embed_dim": 24, "depth": 2, "num_heads": 2},
    "eva02_tiny_patch14_224": {"img_size": 28, "embed_dim": 24, "depth": 2, "num_heads": 2},
    "vit_small_patch16_dinov3": {"img_size": 32, "embed_dim": 32, "depth": 2, "num_heads": 2},
    "cait_xxs24_224": {"img_size": 32, "embed_dim": 24, "depth": 2, "num_heads": 2},
    "swin_tiny_patch4_window7_224": {"img_size": 32, "window_size": 4, "embed_dim": 12, **STAGES},
    "swinv2_tiny_window8_256": {"img_size": 32, "window_size": 4, "embed_dim": 12, **STAGES},
    "pvt_v2_b0": {"img_size": 64, "depths": (1, 1, 1, 1)},
    "levit_128s": {"img_size": 64, "embed_dim": (16, 32, 48), "num_heads": (2, 2, 2), "depth": (1, 1, 1), "key_dim": 8},
    "xcit_nano_12_p16_224": {"img_size": 32, "embed_dim": 32, "depth": 2, "num_heads": 2},
    "twins_svt_small": {"img_size": 64, "embed_dims": (16,) * 4, "num_heads": (2,) * 4, "depths": (2, 1, 1, 1)},
    "crossvit_tiny_240": {"img_size": 240},
}  # fmt: skip


@pytest.mark.parametrize("name", FAMILIES)
def test_families(name: str) -> None:
    options = {k: v for k, v in FAMILIES[name].items() if not (k == "img_size" and name.startswith("pvt"))}
    model = randomise(timm.create_model(name, num_classes=7, **options)).eval()
    size = FAMILIES[name]["img_size"]
    x = torch.randn(BATCH, 3, size, size, generator=torch.Generator().manual_seed(0))
    units = find_units(model, x)
    gateable = [branch for branch in units.branches.values() if branch.reason is None]
    assert len(gateable) >= len(units.branches) - 1
    for per_sample in (False, True):
        runner = gated(model, units, per_sample)
        with torch.no_grad():
            skipping = runner(x)
            set_mode(runner, "masked")
            assert gap(skipping, runner(x)) < 1e-4
            assert gap(skipping, model(x)) > 1e-3
        set_mode(runner, "auto")
        counted = counted_macs(runner, x)
        assert counted == batch_macs(units, gating_of(runner).state.dynamic, 0, BATCH)  # type: ignore[union-attr]
    plan = Plan(records=tuple(Drop(branch=branch.name) for branch in gateable[::2]))
    small = shrink(model, plan, x)
    assert cost(units, plan).params == sum(p.numel() for p in small.parameters())
    assert counted_macs(small, x[:1]) == cost(units, plan).macs
