"""The residual stream's width: who reads and writes it, what follows, and why some can't be cut."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from units.hosts import DIM, INPUT, Layers, Residual, mlp
from widths import FAMILIES, made
from zoo import INPUT as IMAGE

from usdcore.units import find_units
from usdcore.units.show import reasons, table_rows, units_json
from usdcore.units.types import Group, Units

ONE = torch.zeros(1, *IMAGE)


def width_of(model: nn.Module, example: Tensor = ONE) -> Group:
    group = find_units(model, example).group("width")
    assert group is not None
    return group


def test_every_reader_and_writer_is_a_member() -> None:
    model = made("distilled")
    group = width_of(model)
    assert (group.size, group.kind, group.reason, group.masks) == (48, "width", None, ())
    members = {(m.tensor, m.axis) for m in group.members}
    expected = {("cls_token", 2), ("dist_token", 2), ("pos_embed", 2), ("head.weight", 1), ("head_dist.weight", 1)}
    expected |= {(f"patch_embed.proj.{name}", 0) for name in ("weight", "bias")}
    for place in ("blocks.0.norm1", "blocks.0.norm2", "blocks.1.norm1", "blocks.1.norm2", "norm"):
        expected |= {(f"{place}.{name}", 0) for name in ("weight", "bias")}
    for block in ("blocks.0", "blocks.1"):
        expected |= {(f"{block}.attn.qkv.weight", 1), (f"{block}.mlp.fc1.weight", 1)}
        expected |= {(f"{block}.{out}.{name}", 0) for out in ("attn.proj", "mlp.fc2") for name in ("weight", "bias")}
    assert members == expected
    assert all(np.array_equal(m.entry_of, np.arange(48)) for m in group.members)
    assert group.norms == ("blocks.0.norm1", "blocks.0.norm2", "blocks.1.norm1", "blocks.1.norm2", "norm")


def test_sizes_follow_by_name_and_by_use() -> None:
    found = {(a.module, a.name): a.per_entry for a in width_of(made("vit")).attributes}
    assert found["blocks.0.norm1", "normalized_shape[0]"] == 1
    assert {name for module, name in found if not module} == {
        *("embed_dim", "num_features", "head_hidden_size"),
        *(f"feature_info[{i}][num_chs]" for i in range(2)),
    }
    assert set(found.values()) == {1}


def test_a_size_that_is_the_width_by_chance_stays() -> None:
    model = made("vit")
    model.num_classes = 48
    assert ("", "num_classes") not in {(a.module, a.name) for a in width_of(model).attributes}


@pytest.mark.parametrize("family", FAMILIES)
def test_isotropic_families_have_one(family: str) -> None:
    units = find_units(made(family), ONE)
    group = units.widths.groups["width"]
    assert (group.size, group.reason, units.widths.reason) == (48, None, None)
    assert group.norms


def counted(units: Units, metric: str) -> dict[tuple[str, str], int]:
    macs = metric == "macs"
    found = {("model", ""): getattr(units, metric)}
    found |= {("unit", unit.name): getattr(unit, metric) for unit in units.all}
    found |= {("branch", name): getattr(branch, metric) for name, branch in units.branches.items()}
    for name, group in units.groups.items():
        pairs = (group.macs_per_pair if macs else group.params_per_pair) * group.size**2
        found["pairs", name] = pairs
        found["group", name] = (group.macs_per_entry if macs else group.params_per_entry) * group.size - pairs
        found["own", name] = (group.own_macs if macs else group.own_params) * group.size
    return found


@pytest.mark.parametrize("family", FAMILIES)
def test_costs_in_terms_of_the_width_are_the_costs(family: str) -> None:
    units = find_units(made(family), ONE)
    for metric, terms in (("macs", units.widths.macs), ("params", units.widths.params)):
        expected = counted(units, metric)
        assert terms.keys() == expected.keys()
        for key, value in expected.items():
            kind = units.groups[key[1]].reason if key[1] in units.groups else None
            if kind is None:  # entries that do not all cost the same are told by their mean
                assert terms[key].at({"width": 48}) == value, key


def test_attention_itself_does_not_depend_on_the_width() -> None:
    macs = find_units(made("vit"), ONE).widths.macs
    tokens, inside, hidden = 17, 48, 192
    assert dict(macs["unit", "blocks.0.attn"].factors) == {(): 2 * tokens**2 * inside, ("width",): tokens * 4 * inside}
    assert {k: v for k, v in macs["own", "blocks.0.mlp:hidden"].factors.items() if v} == {
        ("width",): tokens * 2 * hidden
    }


def test_found_only_when_asked_for() -> None:
    units = find_units(made("vit"), ONE)
    assert "width" not in units.groups
    assert "widths" not in vars(units)
    assert units.group("blocks.0.mlp:hidden") is units.groups["blocks.0.mlp:hidden"]
    assert units.widths is units.widths


class TwoStages(nn.Module):
    """A stream of 24 channels, then one of 10; `first` normalises in between."""

    def __init__(self, between: nn.Module | None = None) -> None:
        super().__init__()
        self.first, self.between = Residual(mlp()), between or nn.Identity()
        self.down = nn.Linear(DIM, 10)
        self.second = Residual(nn.Sequential(nn.Linear(10, 16), nn.GELU(), nn.Linear(16, 10)))
        self.head = nn.Linear(10, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.second(self.down(self.between(self.first(x)))))


class Embedded(nn.Module):
    """Something that makes a stream, so that it can be cut, before a host."""

    def __init__(self, host: nn.Module) -> None:
        super().__init__()
        self.embed, self.host = nn.Linear(DIM, DIM), host

    def forward(self, x: Tensor) -> Tensor:
        return self.host(self.embed(x))


def test_several_streams_have_a_group_each() -> None:
    widths = find_units(Embedded(TwoStages()), INPUT).widths
    assert widths.reason == (
        "the model has 2 residual streams, each with a width of its own: 24 (host.first:width), 10 (host.second:width)"
    )
    assert [(g.name, g.size, g.reason) for g in widths.groups.values()] == [
        ("host.first:width", 24, None),
        ("host.second:width", 10, None),
    ]


class HandWritten(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x * x.pow(2).mean(-1, keepdim=True).rsqrt()


class InGroups(nn.Module):
    """GroupNorm, for which channels come second."""

    def __init__(self, number: int) -> None:
        super().__init__()
        self.norm = nn.GroupNorm(number, DIM)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(x.transpose(1, 2)).transpose(1, 2)


def test_a_group_norm_over_all_channels_is_one_over_those_that_are_left() -> None:
    group = find_units(Embedded(TwoStages(InGroups(1))), INPUT).widths.groups["host.first:width"]
    assert (group.reason, group.norms[-1]) == (None, "host.between.norm")


@pytest.mark.parametrize(
    ("model", "reason"),
    [
        (Embedded(TwoStages(HandWritten())), "mean in host.between (.*) sums over its entries"),
        (Embedded(Residual(mlp())), "the model's output shows its entries"),
        (Embedded(TwoStages(InGroups(4))), "normalised together by group_norm"),
        (Embedded(nn.Sequential(Residual(mlp()), nn.Softmax(-1), nn.Linear(DIM, 3))), "normalised together by softmax"),
    ],
)
def test_reasons(model: nn.Module, reason: str) -> None:
    import re

    group = next(iter(find_units(model, INPUT).widths.groups.values()))
    assert group.reason is not None
    assert re.search(reason, group.reason), group.reason


def test_an_input_that_is_the_stream_itself_is_no_stream_to_cut() -> None:
    widths = find_units(Layers(Residual(mlp())), INPUT).widths
    assert not widths.groups
    assert "no residual stream was found" in (widths.reason or "")
    assert any("no residual stream" in reason for reason, _ in reasons(find_units(Layers(Residual(mlp())), INPUT)))


def test_shown() -> None:
    units = find_units(made("vit"), ONE)
    (shown,) = units_json(units, "mine", 32)["width"]
    assert (shown["name"], shown["size"], shown["prunable"], len(shown["norms"])) == ("width", 48, True, 5)
    group = units.widths.groups["width"]
    assert table_rows(units)[-1] == [
        *("the model", "width", "48"),
        *(f"{group.macs_per_entry:,}", f"{group.params_per_entry:,}", "yes"),
    ]
    several = find_units(Embedded(TwoStages()), INPUT)
    assert [row[0] for row in table_rows(several)[-2:]] == ["host.first", "host.second"]
