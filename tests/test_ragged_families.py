"""Dims inside heads in other families: fused and separate projections, rotary pairs, norms, weights without their
module, projections with a BatchNorm, convolutions; the cases A and C of the pass matrix, exact against masks.
"""

from __future__ import annotations

import copy
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from counting import counted_macs
from exact import masked_output
from torch import Tensor, nn
from zoo import SMALL, gap, randomise

from usdcore.artifact import create, save
from usdcore.costs import cost
from usdcore.gates import Gating
from usdcore.nesting import continued
from usdcore.passages import Passage
from usdcore.plans import Base, Keep, Plan
from usdcore.ragged import Ragged
from usdcore.runner import attach, detach
from usdcore.surgery import shrink
from usdcore.units import find_units
from usdcore.units.types import Units

A = ("qk_dims", "v_dims", "hidden")
C = ("heads", *A)
WINDOWS: dict[str, Any] = {"embed_dim": 24, "depths": (2, 2), "num_heads": (2, 4), "num_classes": 7}
LEVIT: dict[str, Any] = {
    "embed_dim": (32, 48),
    "key_dim": 8,
    "depth": (1, 1),
    "num_heads": (2, 3),
    "num_classes": 7,
    "img_size": 64,
}
#: Name, arguments, size of the images, whether queries and keys may move, entries of them in a head.
FAMILIES: dict[str, tuple[str, dict[str, Any], int, bool, int]] = {
    "vit": ("vit_tiny_patch16_224", SMALL, 32, True, 12),
    "qk_norm": ("vit_tiny_patch16_224", {**SMALL, "qk_norm": True}, 32, False, 12),
    "relpos": ("vit_relpos_small_patch16_224", SMALL, 32, True, 12),
    "deit3": ("deit3_small_patch16_224", SMALL, 32, True, 12),
    "dinov2": ("vit_small_patch14_dinov2", SMALL, 32, True, 12),
    "dinov3": ("vit_small_patch16_dinov3", SMALL, 32, False, 6),
    "eva02": ("eva02_tiny_patch14_224", SMALL, 32, False, 6),
    "eva02_base": ("eva02_base_patch14_224", SMALL, 32, False, 6),
    "beit": ("beit_base_patch16_224", SMALL, 32, True, 12),
    "siglip": ("vit_base_patch16_siglip_224", SMALL, 32, True, 12),
    "cait": ("cait_xxs24_224", SMALL, 32, True, 12),
    "swin": ("swin_tiny_patch4_window7_224", {**WINDOWS, "img_size": 56}, 56, True, 12),
    "swin2": ("swinv2_tiny_window8_256", {**WINDOWS, "img_size": 64}, 64, False, 12),
    "pvt": (
        "pvt_v2_b0",
        {"embed_dims": (16, 32), "depths": (1, 1), "num_heads": (1, 2), "sr_ratios": (2, 1)},
        32,
        True,
        16,
    ),
    "levit": ("levit_128s", LEVIT, 64, True, 8),
    "levit_conv": ("levit_conv_128s", LEVIT, 64, True, 8),
}


@pytest.fixture(params=FAMILIES)
def family(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def host(family: str) -> tuple[nn.Module, Tensor, Tensor]:
    """A small model with random weights, an example and a batch, in float64."""
    name, kwargs, size, *_ = FAMILIES[family]
    model = randomise(timm.create_model(name, **kwargs)).double().eval()
    x = torch.randn(2, 3, size, size, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    return model, x[:1], x


def half(units: Units, kinds: tuple[str, ...], seed: int, is_even: bool) -> Plan:
    """A random half of every group; of dims a half of each head's, or of all of them but one in each head at least."""
    rng = np.random.default_rng(seed)
    records = []
    for group in units.groups.values():
        if group.reason is not None or group.kind not in kinds:
            continue
        parents = np.zeros(group.size, np.int64) if group.parent_of is None else group.parent_of
        kept = [rng.permutation(np.flatnonzero(parents == p)) for p in np.unique(parents)]
        if is_even or group.parent_of is None:
            kept = [own[: max(1, len(own) // 2)] for own in kept]
        else:
            kept = [own[: max(1, int(rng.integers(len(own) + 1)))] for own in kept]
        records.append(Keep(group=group.name, indices=tuple(sorted(np.concatenate(kept).tolist()))))
    return Plan(records=tuple(records))


@pytest.mark.parametrize(("kinds", "is_even"), [(A, False), (A, True), (C, False)], ids=["A", "A-even", "C"])
def test_masked_equals_shrunk(family: str, kinds: tuple[str, ...], is_even: bool) -> None:
    model, one, x = host(family)
    units = find_units(model, one)
    plan = half(units, kinds, 1, is_even)
    small = shrink(model, plan, one)
    with torch.no_grad():
        expected = masked_output(model, units, plan, x)
        assert gap(expected, model(x)) > 1e-3
        assert gap(masked_output(model, units, plan, x, shift=1), expected) > 1e-3
        assert gap(small(x), expected) < 1e-12
    predicted = cost(units, plan)
    if family != "siglip":  # the queries of its pooling are a parameter's, counted as if computed once for a batch
        assert predicted.macs == counted_macs(copy.deepcopy(small).requires_grad_(False), one)
    assert predicted.params == sum(p.numel() for p in small.parameters())
    assert list(small.state_dict()) == list(model.state_dict())


def test_again_and_again(family: str) -> None:
    """What is left is found, cut and counted as before; two plans in turn are one."""
    model, one, x = host(family)
    dense = find_units(model, one)
    first = half(dense, C, 2, False)
    once = shrink(model, first, one)
    units = find_units(once, one)
    records = half(units, C, 3, False).records
    second = Plan(records=tuple(r for r in records if isinstance(r, Keep) and dense.groups[r.group].reason is None))
    twice = shrink(once, second, one)
    both = continued(first, second.records, units)
    with torch.no_grad():
        assert gap(twice(x), masked_output(once, units, second, x)) < 1e-12
        assert torch.equal(shrink(model, both, one)(x), twice(x))


def test_what_is_found(family: str) -> None:
    *_, is_moving, per_head = FAMILIES[family]
    model, one, _ = host(family)
    units = find_units(model, one)
    for unit in units.attention:
        _, qk, v = unit.groups
        assert (qk.reason, v.reason) == (None, None)
        assert qk.slots is not None
        assert {point.side for point in qk.masks} == {"output"}
    first = units.attention[0].groups[1]
    assert first.slots is not None
    assert (first.slots.moves, first.slots.per_parent) == (is_moving, per_head)
    assert first.size == units.attention[0].num_heads * per_head


def test_only_projections_get_cheaper() -> None:
    """The core multiplies zeros in the place of what is gone."""
    model, one, _ = host("vit")
    units = find_units(model, one)
    plan = Plan(records=(Keep(group="blocks.0.attn:qk_dims", indices=(0, 1, 13, 47)),))
    found = find_units(shrink(model, plan, one), one).attention[0]
    heads, qk, _ = found.groups
    assert (found.num_heads, found.qk_dim, found.v_dim) == (4, 12, 12)
    assert qk.parent_of is not None
    assert qk.parent_of.tolist() == [0, 0, 1, 3]
    assert units.macs - cost(units, plan).macs == 44 * 2 * 17 * 48
    assert units.params - cost(units, plan).params == 44 * 2 * 49
    assert heads.own_macs == units.attention[0].groups[0].own_macs


def test_rotary_pairs_go_together() -> None:
    for family in ("eva02", "dinov3"):
        model, one, _ = host(family)
        group = find_units(model, one).groups["blocks.0.attn:qk_dims"]
        rows = next(m.entry_of for m in group.members if m.tensor == "blocks.0.attn.qkv.weight")
        pairs = np.flatnonzero(rows == 0)
        assert pairs.tolist() == ([0, 1, 48, 49] if family == "eva02" else [0, 6, 48, 54])


def test_a_passage_is_there_while_it_is_needed() -> None:
    """Where a weight is used without its module, gates and gaps act in a child that is made for them."""
    model, one, x = host("beit")
    units = find_units(model, one)
    assert not any(isinstance(module, Passage) for module in model.modules())
    plan = half(units, ("v_dims",), 0, True)
    small = shrink(model, plan, one)
    assert not any(isinstance(module, Passage) for module in model.modules())
    assert sum(isinstance(module, Passage) and isinstance(module, Ragged) for module in small.modules()) == 3
    with torch.no_grad():
        before = model(x)
        masked_output(model, units, half(units, ("qk_dims",), 0, True), x)
        assert not any(isinstance(module, Passage) for module in model.modules())
        assert torch.equal(model(x), before)
        twin = copy.deepcopy(small)
        assert torch.equal(twin(x), small(x))
    attach(small, find_units(small, one), Gating())
    detach(small)
    assert sum(isinstance(module, Ragged) for module in small.modules()) == 6


@pytest.mark.parametrize("family", ["eva02", "levit"])
def test_loaded_in_a_new_process(family: str, tmp_path: Path) -> None:
    name, kwargs, size, *_ = FAMILIES[family]
    kwargs = {key: value for key, value in kwargs.items() if key != "num_classes"}
    base = Base(name=name, kwargs=kwargs, num_classes=7, input_shape=(3, size, size))
    model = randomise(create(base)).eval()
    plan = Plan(base=base, records=half(find_units(model, torch.zeros(1, 3, size, size)), C, 4, False).records)
    small = shrink(model, plan)
    save(small, plan, tmp_path / "m.safetensors")
    x = torch.randn(2, 3, size, size, generator=torch.Generator().manual_seed(0))
    torch.save({"x": x, "y": small(x).detach()}, tmp_path / "xy.pt")
    code = (
        "import sys, torch, usdcore; xy = torch.load(sys.argv[2], weights_only=True); torch.set_num_threads(1); "
        "torch.set_grad_enabled(False); y = usdcore.load(sys.argv[1])(xy['x']); print(float((y - xy['y']).abs().max()))"
    )
    arguments = [str(tmp_path / "m.safetensors"), str(tmp_path / "xy.pt")]
    out = subprocess.run([sys.executable, "-c", code, *arguments], check=True, capture_output=True, text=True).stdout
    assert float(out) < 1e-5


@pytest.mark.parametrize("family", ["qk_norm", "eva02", "beit"])
def test_it_trains_and_exports(family: str) -> None:
    model, one, x = host(family)
    small = shrink(model, half(find_units(model, one), A, 5, False), one)
    with torch.no_grad():
        exported = torch.export.export(small, (x,)).module()
        assert gap(exported(x), small(x)) < 1e-12
    out = small.train()(x)
    out = out[0] if isinstance(out, tuple) else out
    out.square().sum().backward()
    assert all(p.grad is not None for n, p in small.named_parameters() if "attn" in n and n.endswith("weight"))
