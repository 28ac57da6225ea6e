"""The six kinds of plain ViT, with fused and unfused attention: what is found, and exact numbers at full size."""

from __future__ import annotations

import numpy as np
import pytest
import timm
import torch
from timm.layers import LayerNorm, SwiGLUPacked
from torch import nn
from zoo import INPUT, KINDS, SMALL

from usdcore.errors import UsdcoreError
from usdcore.units import find_units
from usdcore.units.types import Units

ONE = torch.zeros(1, *INPUT)


def full_size(name: str) -> Units:
    with torch.device("meta"):
        model = timm.create_model(name)
    return find_units(model, torch.zeros(1, 3, 224, 224))


def test_everything_is_found(model: nn.Module, fused: bool) -> None:
    units = find_units(model, ONE)
    names = [f"blocks.{i}.{part}" for i in range(3) for part in ("attn", "mlp")]
    assert [unit.name for unit in units.attention] == names[::2]
    assert [unit.name for unit in units.ffn] == names[1::2]
    assert list(units.branches) == names
    assert [block.name for block in units.blocks] == ["blocks.0", "blocks.1", "blocks.2"]
    assert [block.width for block in units.blocks] == [48] * 3
    assert [name for block in units.blocks for name in block.units] == names
    for unit in units.attention:
        assert (unit.num_heads, unit.qk_dim, unit.v_dim) == (4, 12, 12)
        assert [group.kind for group in unit.groups] == ["heads", "qk_dims", "v_dims"]
        heads = unit.groups[0]
        assert heads.reason is None
        assert heads.name == f"{unit.name}:heads"
        (mask,) = heads.masks
        assert (mask.module, mask.axis) == (f"{unit.name}.proj", -1)
        assert np.array_equal(mask.entry_of, np.arange(48) // 12)
        assert {(a.name, a.per_entry) for a in heads.attributes} == {("num_heads", 1), ("attn_dim", 12)}
    for ffn in units.ffn:
        (hidden,) = ffn.groups
        assert (hidden.reason, hidden.kind, hidden.size, hidden.attributes) == (None, "hidden", ffn.hidden, ())
        (mask,) = hidden.masks
        assert np.array_equal(mask.entry_of, np.arange(ffn.hidden))


def test_branches_are_the_sums_of_a_block(model: nn.Module, fused: bool) -> None:
    units = find_units(model, ONE)
    for name, branch in units.branches.items():
        owner, _, part = name.rpartition(".")
        number = 1 if part == "attn" else 2
        assert branch.reason is None
        assert branch.owner == owner
        assert branch.sum is not None
        assert (branch.sum.function, branch.sum.skip, branch.sum.stream) == ("forward", 0, "x")
        names = tuple(f"{owner}.{child}" for child in (f"norm{number}", part, f"ls{number}", f"drop_path{number}"))
        assert branch.modules == names
        assert branch.tensors == ()
        modules = [model.get_submodule(path) for path in branch.modules]
        assert branch.params == sum(p.numel() for module in modules for p in module.parameters())


def test_costs_add_up(model: nn.Module, fused: bool) -> None:
    units = find_units(model, ONE)
    assert units.params == sum(p.numel() for p in model.parameters())
    for unit in units.all:
        assert unit.branch is units.branches[unit.name]
        assert unit.macs == unit.branch.macs == unit.groups[0].size * unit.groups[0].macs_per_entry
        own = model.get_submodule(unit.name)
        assert unit.params == sum(p.numel() for p in own.parameters())


@pytest.mark.parametrize(
    ("name", "macs", "params"),
    [
        ("deit_tiny_patch16_224", 1_253_683_200, 5_717_416),
        ("deit_small_patch16_224", 4_598_882_304, 22_050_664),
        ("deit_base_patch16_224", 17_563_828_224, 86_567_656),
        ("deit_tiny_distilled_patch16_224", 1_261_003_776, 5_910_800),
    ],
)
def test_exact_costs(name: str, macs: int, params: int, fused: bool) -> None:
    units = full_size(name)
    assert (units.macs, units.params) == (macs, params)
    assert sum(data["macs"] for _, data in units.graph.nodes(data=True) if data["kind"] == "op") == macs


def test_exact_costs_of_one_entry() -> None:
    groups = full_size("deit_small_patch16_224").groups
    heads, hidden = groups["blocks.3.attn:heads"], groups["blocks.3.mlp:hidden"]
    assert (heads.macs_per_entry, heads.params_per_entry) == (24_333_440, 64 * (3 * 384 + 3 + 384))
    assert (hidden.macs_per_entry, hidden.params_per_entry) == (151_296, 2 * 384 + 1)
    qk, v = (groups[f"blocks.3.attn:{kind}"] for kind in ("qk_dims", "v_dims"))
    assert (qk.macs_per_entry, qk.params_per_entry) == (2 * 197 * 384, 2 * 385)
    assert (v.macs_per_entry, v.params_per_entry) == (2 * 197 * 384, 385 + 384)
    assert heads.own_macs == heads.macs_per_entry - 64 * (qk.macs_per_entry + v.macs_per_entry) == 2 * 64 * 197 * 197
    assert (heads.own_params, qk.slots is not None and qk.slots.moves) == (0, True)


def test_dims_lie_inside_heads() -> None:
    groups = find_units(KINDS["vit"](), ONE).groups
    heads, qk, v = (groups[f"blocks.1.attn:{kind}"] for kind in ("heads", "qk_dims", "v_dims"))
    for dims in (qk, v):
        assert dims.size == 48
        assert dims.parent_of is not None
        assert np.array_equal(dims.parent_of, np.arange(48) // 12)
        assert dims.parent == heads.name
        assert dims.reason is None
    rows = {m.tensor: m.entry_of for m in heads.members}["blocks.1.attn.qkv.weight"]
    parents = np.concatenate([qk.parent_of, qk.parent_of, v.parent_of])  # type: ignore[list-item]
    assert np.array_equal(rows, parents)
    own = {m.tensor: m.entry_of for m in qk.members}["blocks.1.attn.qkv.weight"]
    assert np.array_equal(own, [*range(48), *range(48), *[-1] * 48])


def test_gated_pairs_go_together() -> None:
    hidden = find_units(KINDS["swiglu"](), ONE).groups["blocks.0.mlp:hidden"]
    members = {(m.tensor, m.axis): m.entry_of for m in hidden.members}
    assert hidden.size == 96
    for name in ("weight", "bias"):
        assert np.array_equal(members[f"blocks.0.mlp.fc1.{name}", 0], [*range(96), *range(96)])
    assert np.array_equal(members["blocks.0.mlp.fc2.weight", 1], np.arange(96))
    assert hidden.params_per_entry == 2 * 49 + 48


def test_norm_weights_shared_by_heads_stay() -> None:
    groups = find_units(KINDS["qk_norm"](), ONE).groups
    heads = groups["blocks.0.attn:heads"]
    assert not any("norm" in m.tensor for m in heads.members)
    assert heads.params_per_entry == 12 * (3 * 48 + 3 + 48)
    qk = groups["blocks.0.attn:qk_dims"]
    assert {(m.tensor, m.axis) for m in qk.members} == {("blocks.0.attn.qkv.weight", 0), ("blocks.0.attn.qkv.bias", 0)}
    assert qk.slots is not None
    assert not qk.slots.moves


@pytest.mark.parametrize(("heads", "dim"), [(4, 16), (8, 64)])
def test_as_many_heads_as_dims(heads: int, dim: int, fused: bool) -> None:
    model = timm.create_model("vit_tiny_patch16_224", **{**SMALL, "embed_dim": dim, "num_heads": heads})
    group = find_units(model, ONE).groups["blocks.0.attn:heads"]
    assert group.reason is None
    assert {(a.name, a.per_entry) for a in group.attributes} == {("num_heads", 1), ("attn_dim", dim // heads)}


def test_a_norm_over_the_entries_is_a_reason() -> None:
    normed = timm.create_model("vit_tiny_patch16_224", mlp_layer=SwiGLUPacked, scale_mlp_norm=True, **SMALL)
    reason = find_units(normed, ONE).groups["blocks.2.mlp:hidden"].reason
    assert reason is not None
    assert reason.startswith("its entries are normalised together by layer_norm in blocks.2.mlp.norm (")
    scaled = timm.create_model("vit_tiny_patch16_224", scale_attn_norm=True, norm_layer=LayerNorm, **SMALL)
    assert "blocks.1.attn.norm" in (find_units(scaled, ONE).groups["blocks.1.attn:heads"].reason or "")


def test_wrong_inputs_are_the_users_mistake() -> None:
    model = KINDS["vit"]()
    with pytest.raises(UsdcoreError, match="fails without data, on inputs"):
        find_units(model, torch.zeros(1, 3, 48, 48))
    with pytest.raises(UsdcoreError, match="must be a tensor"):
        find_units(model, (3, 32, 32))  # type: ignore[arg-type]


def test_graph_is_the_dataflow() -> None:
    graph = find_units(KINDS["vit"](), ONE).graph
    (linear,) = [n for n, d in graph.nodes(data=True) if d.get("module") == "blocks.1.mlp.fc1"]
    assert graph.nodes[linear]["shapes"] == ((2, 17, 192),)
    assert {"blocks.1.mlp.fc1.weight", "blocks.1.mlp.fc1.bias"} < set(graph.predecessors(linear))
    assert [graph.nodes[n]["op"] for n in graph.successors(linear)] == ["gelu"]
    assert graph.nodes["input:0"]["kind"] == "input"
