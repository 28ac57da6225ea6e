"""What one rule of the label pass each makes prunable: exact on hand-written hosts."""

from __future__ import annotations

import pytest
import torch
from exact import check_exact, random_half
from torch import nn
from units.hosts import DIM, INPUT, TOKENS, Layers
from units.rule_hosts import (
    Biased,
    Chain,
    Channels,
    ConvFeed,
    ConvNet,
    Cosine,
    Decomposed,
    Gated,
    Mixed,
    OneKey,
    Squeeze,
    Talking,
    Turned,
)
from zoo import randomise

from usdcore.surgery import shrink
from usdcore.units import find_units
from usdcore.units.types import Group

TABLES = ("index", "columns", "kept", "index_select", "embedding", "tuple", "product", "near", "mlp")
HEADS, HIDDEN = "layers.0:heads", "layers.0.up:hidden"


def tokens() -> torch.Tensor:
    return torch.randn(3, TOKENS, DIM, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


def images() -> torch.Tensor:
    return torch.randn(3, 3, 6, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


def ready(model: nn.Module) -> nn.Module:
    return randomise(model).double().eval()


def members(group: Group) -> dict[str, list[int]]:
    found: dict[str, list[int]] = {}
    for member in group.members:
        found.setdefault(member.tensor.removeprefix("layers.0."), []).append(member.axis)
    return found


@pytest.mark.parametrize("is_fused", [True, False])
@pytest.mark.parametrize("how", TABLES)
def test_a_bias_for_each_head(how: str, is_fused: bool) -> None:
    model = ready(Layers(Biased(how, is_fused)))
    model(tokens())  # fills what the host keeps
    heads = find_units(model, INPUT).groups[HEADS]
    tensor, axis = ("mlp.weight", 0) if how == "mlp" else ("table", 0 if how in ("columns", "kept") else 1)
    assert members(heads)[tensor] == [axis]
    small = check_exact(model, tokens(), [HEADS])
    if how == "tuple":
        assert small.layers[0].rows == (2 * TOKENS - 1, 2)  # type: ignore[index, union-attr]


def test_what_an_evaluation_keeps_is_dropped_with_each_modules_own_mode() -> None:
    model = ready(Layers(Biased("kept", True), Biased("kept", True)))
    model(tokens())
    kept = model.layers[0].kept["all"]  # type: ignore[index, union-attr]
    model.layers[1].train()  # type: ignore[index]
    units = find_units(model, INPUT)
    assert model.layers[0].kept["all"] is kept  # type: ignore[index, union-attr]
    small = shrink(model, random_half(units), INPUT)
    assert [layer.training for layer in small.layers] == [False, True]  # type: ignore[union-attr]
    assert not small.layers[0].kept  # type: ignore[index, union-attr]


@pytest.mark.parametrize("is_fused", [True, False])
@pytest.mark.parametrize("block", [Cosine, Channels, OneKey, Decomposed])
def test_heads_by_other_signs(block: type[nn.Module], is_fused: bool) -> None:
    check_exact(ready(Layers(block(is_fused))), tokens(), [HEADS])


def test_values_may_come_first_in_the_product() -> None:
    units = find_units(Layers(Turned()), INPUT)
    assert units.attention[0].num_heads == 4
    check_exact(ready(Layers(Turned())), tokens(), [HEADS])


def test_why_the_dims_inside_heads_stay() -> None:
    for block, reason in ((Channels(), "over channels"), (OneKey(True), "share keys and values")):
        groups = find_units(Layers(block), INPUT).groups
        for kind in ("qk_dims", "v_dims"):
            assert reason in (groups[f"layers.0:{kind}"].reason or "")
    assert "layers.0.relative" not in members(find_units(Layers(Decomposed(True)), INPUT).groups[HEADS])


@pytest.mark.parametrize("by", ["linear", "convolution"])
def test_talking_heads(by: str) -> None:
    model = ready(Layers(Talking(by)))
    heads = find_units(model, INPUT).groups[HEADS]
    assert [(m.module.removeprefix("layers.0."), m.axis) for m in heads.masks] == [
        ("before", -1 if by == "linear" else 1),
        ("after", -1 if by == "linear" else 1),
        ("out", -1),
    ]
    assert members(heads)["before.weight"] == members(heads)["after.weight"] == [0, 1]
    assert (heads.macs_per_pair, heads.params_per_pair) == (2 * TOKENS**2, 2)
    check_exact(model, tokens(), [HEADS])


def test_several_projections_read_the_entries() -> None:
    model = ready(Layers(Gated()))
    hidden = find_units(model, INPUT).groups[HIDDEN]
    assert [mask.module for mask in hidden.masks] == ["layers.0.down", "layers.0.gate"]
    check_exact(model, tokens(), [HIDDEN])


def test_entries_made_of_all_entries_cost_by_the_pair() -> None:
    model = ready(Layers(Mixed()))
    hidden = find_units(model, INPUT).groups[HIDDEN]
    assert (hidden.macs_per_pair, hidden.params_per_pair) == (TOKENS, 1)
    assert len(hidden.masks) == 2
    check_exact(model, tokens(), [HIDDEN])


def test_of_groups_that_share_a_weight_the_costlier_is_prunable() -> None:
    model = ready(Layers(Chain()))
    first, second = (unit.groups[0] for unit in find_units(model, INPUT).ffn)
    assert first.reason is None
    assert (second.reason or "").startswith("linear in layers.0.b (")
    assert "has entries of another group too" in (second.reason or "")
    check_exact(model, tokens(), [first.name])


@pytest.mark.parametrize("kernel", [1, 3])
@pytest.mark.parametrize("gate", [nn.Identity, Squeeze])
def test_channels_of_convolutions(gate: type[nn.Module], kernel: int) -> None:
    model = ready(ConvNet(ConvFeed(lambda n: gate(n) if gate is Squeeze else gate(), kernel), ConvFeed()))
    units = find_units(model, torch.zeros(1, 3, 6, 6))
    names = [f"blocks.{i}.up:hidden" for i in range(2)]
    assert {mask.axis for name in names for mask in units.groups[name].masks} == {1}
    small = check_exact(model, images(), names)
    block = small.get_submodule("blocks.0")
    assert (block.up.out_channels, block.depth.in_channels, block.depth.groups) == (10, 10, 10)  # type: ignore[union-attr]
    assert (block.bn1.num_features, block.down.in_channels) == (10, 10)  # type: ignore[union-attr]
    if gate is Squeeze:
        assert "has entries of another group too" in (units.groups["blocks.0.gate:hidden"].reason or "")
