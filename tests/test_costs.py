"""The papers' arithmetic, exactly: totals of the dense models, the price of a head and a neuron, Figure 5 of USDC."""

from __future__ import annotations

import pytest
import timm
import torch

from usdcore.artifact import create
from usdcore.costs import Tree, cost
from usdcore.plans import Base, Drop, Keep, Plan
from usdcore.surgery import shrink
from usdcore.units import find_units
from usdcore.units.types import Units

IMAGE = torch.zeros(1, 3, 224, 224, device="meta")

#: heads and rate of MHSA, hidden size and rate of FFN per layer; 0 is pruned.
FIGURE_5 = [
    (4, 0.75, 1276, 0.96),
    (4, 0.92, 1319, 0.98),
    (4, 0.95, 1394, 0.89),
    (0, 0.00, 1306, 0.84),
    (6, 1.00, 1302, 0.81),
    (6, 0.91, 1249, 0.85),
    (6, 0.78, 1409, 0.66),
    (6, 1.00, 0, 0.00),
    (6, 1.00, 1447, 0.29),
    (6, 0.99, 1047, 0.01),
    (6, 0.97, 0, 0.00),
    (6, 0.97, 1378, 0.01),
]
OUTSIDE = 58_186_752  # patch embedding and classifier of DeiT-S


def dense(name: str) -> Units:
    with torch.device("meta"):
        model = timm.create_model(name)
    return find_units(model, IMAGE)


@pytest.mark.parametrize(
    ("name", "macs", "params"),
    [
        ("deit_tiny_patch16_224", 1_253_683_200, 5_717_416),
        ("deit_small_patch16_224", 4_598_882_304, 22_050_664),
        ("deit_base_patch16_224", 17_563_828_224, 86_567_656),
        ("deit_tiny_distilled_patch16_224", 1_261_003_776, 5_910_800),
    ],
)
def test_dense_totals(name: str, macs: int, params: int) -> None:
    found = cost(dense(name))
    assert (found.macs, found.params) == (macs, params)


def test_one_head_and_one_neuron() -> None:
    groups = dense("deit_small_patch16_224").groups
    assert groups["blocks.7.attn:heads"].macs_per_entry == 24_333_440
    assert groups["blocks.7.mlp:hidden"].macs_per_entry == 151_296


def figure_5() -> Plan:
    records: list[Keep | Drop] = []
    for i, (heads, _, hidden, _) in enumerate(FIGURE_5):
        for unit, kind, size in (("attn", "heads", heads), ("mlp", "hidden", hidden)):
            name = f"blocks.{i}.{unit}"
            group = f"{name}:{kind}"
            records.append(Keep(group=group, indices=tuple(range(size))) if size else Drop(branch=name))
    return Plan(
        base=Base(name="deit_small_patch16_224", num_classes=1000, input_shape=(3, 224, 224)), records=tuple(records)
    )


def test_figure_5_static() -> None:
    units = dense("deit_small_patch16_224")
    found = cost(units, figure_5())
    assert found.macs - OUTSIDE == 3_446_068_992
    assert round(100 * (found.macs - OUTSIDE) / units.macs, 2) == 74.93
    assert round(100 * found.macs / units.macs, 2) == 76.20
    assert round(found.params / 1e6, 3) == 16.786


def test_figure_5_with_the_printed_rates() -> None:
    units = dense("deit_small_patch16_224")
    kept = {name: len(indices) for name, indices in figure_5().kept_groups.items()}
    rates = {f"blocks.{i}.attn": row[1] for i, row in enumerate(FIGURE_5)}
    rates |= {f"blocks.{i}.mlp": row[3] for i, row in enumerate(FIGURE_5)}
    executed = Tree(units).executed(rates, kept)
    assert round(100 * (executed - OUTSIDE) / units.macs, 2) == 57.19
    assert round(100 * executed / units.macs, 2) == 58.46


def test_figure_5_as_a_model() -> None:
    plan = figure_5()
    assert plan.base is not None
    with torch.device("meta"):
        model = create(plan.base)
    small = find_units(shrink(model, plan, IMAGE), IMAGE)
    assert [unit.num_heads for unit in small.attention] == [row[0] for row in FIGURE_5 if row[0]]
    assert [unit.hidden for unit in small.ffn] == [row[2] for row in FIGURE_5 if row[2]]


def test_a_default_device_does_not_matter() -> None:
    with torch.device("meta"):
        assert find_units(timm.create_model("deit_tiny_patch16_224"), IMAGE).macs == 1_253_683_200
