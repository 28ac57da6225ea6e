"""Heads whose dims differ in number: exact in every layout, counted and composed right, as usable as the host."""

from __future__ import annotations

import copy
import itertools
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from counting import counted_macs
from exact import masked_output
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from test_artifact import KWARGS, base_of
from test_surgery import ONE, masked
from torch import Tensor, nn
from torch.nn import functional as F
from units.hosts import Block, Layers
from zoo import INPUT, SMALL, gap, randomise

import usdcore
from usdcore.artifact import create, save
from usdcore.costs import cost
from usdcore.errors import UsdcoreError
from usdcore.plans import Drop, Keep, Plan
from usdcore.ragged import FEW_RUNS, Ragged, lay_out, layout_of, relaid
from usdcore.surgery import shrink
from usdcore.units import find_units
from usdcore.units.types import Units

fast = settings(max_examples=10, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
seeds = st.integers(0, 2**32 - 1)


def keep(group: str, indices: object) -> Keep:
    return Keep(group=group, indices=tuple(int(i) for i in np.asarray(indices)))


def ragged_plan(units: Units, seed: int, heads: bool = True) -> Plan:
    """A different number of dims in each head, none in some; heads go too, in every second unit (dims of theirs stay
    named).
    """
    rng = np.random.default_rng(seed)
    records = []
    for number, (parent, inside) in enumerate(units.nested.items()):
        num_heads = units.groups[parent].size
        held = [set(np.unique(group.parent_of)) for group in inside]  # type: ignore[arg-type]
        firsts = [int(rng.choice(sorted(set.intersection(*held) or own))) for own in held]
        if heads and number % 2 == seed % 2:
            others = rng.permutation(num_heads)[: int(rng.integers(num_heads))].tolist()
            records.append(keep(parent, sorted({*firsts, *others})))
        for group, first in zip(inside, firsts, strict=True):
            assert group.parent_of is not None
            shares = rng.uniform(0, 1, num_heads) * (rng.random(num_heads) < 0.75)
            is_kept = rng.random(group.size) < shares[group.parent_of]
            is_kept[np.flatnonzero(group.parent_of == first)[0]] = True
            records.append(keep(group.name, np.flatnonzero(is_kept)))
    return Plan(records=tuple(records))


def shrunk(model: nn.Module, seed: int) -> nn.Module:
    return shrink(model, ragged_plan(find_units(model, ONE), seed), ONE)


@cache
def one_block() -> nn.Module:
    """For tests that shrink again and again."""
    return randomise(timm.create_model("vit_tiny_patch16_224", **{**SMALL, "depth": 1})).eval()


@cache
def found(seed: int) -> Units:
    """The units of that model, and of two ragged ones made from it."""
    return find_units(shrunk(one_block(), seed) if seed else one_block(), ONE)


# --- exactness


def test_masked_equals_shrunk(model: nn.Module, fused: bool, images: Tensor) -> None:
    plan = ragged_plan(find_units(model, ONE), 1)
    small = shrink(model, plan, ONE)
    for name in ("qkv", "proj"):
        module = small.get_submodule(f"blocks.0.attn.{name}")
        assert isinstance(module, Ragged)
        assert isinstance(module, nn.Linear)
    out = small(images)  # with autograd; below without: two ways to compute it
    with torch.no_grad():
        expected = masked(model, plan)(images)
        assert gap(expected, model(images)) > 1e-2
        assert gap(out.detach(), expected) < 1e-4
        assert gap(small(images), expected) < 1e-4
        assert gap(small.double()(images.double()), masked(model.double(), plan)(images.double())) < 1e-12


@pytest.mark.parametrize("kind", ["qk_dims", "v_dims"])
def test_wrong_dims_fail(kind: str, vit: nn.Module, images: Tensor) -> None:
    dims = [group for group in find_units(vit, ONE).groups.values() if group.kind == kind]
    right, wrong = (
        Plan(records=tuple(keep(g.name, [*range(half, half + 6), *range(24, 48)]) for g in dims)) for half in (0, 6)
    )
    with torch.no_grad():
        assert gap(shrink(vit, wrong, ONE)(images), masked(vit, right)(images)) > 100 * 1e-4


@fast
@given(seed=seeds)
def test_prediction_equals_the_counter(images: Tensor, seed: int) -> None:
    plan = ragged_plan(found(0), seed)
    small, predicted = shrink(one_block(), plan, ONE), cost(found(0), plan)
    assert predicted.macs * len(images) == counted_macs(small, images)
    assert predicted.params == sum(p.numel() for p in small.parameters())


def test_what_is_found_in_a_ragged_model(vit: nn.Module) -> None:
    """The dims' price is their row and column; the core keeps its full width until the head goes."""
    plan = Plan(records=(keep("blocks.0.attn:v_dims", [0, 1, 13, 47]),))
    dense, units = find_units(vit, ONE), find_units(shrink(vit, plan, ONE), ONE)
    unit, before = units.attention[0], dense.attention[0]
    heads, qk, dims = unit.groups
    assert (unit.num_heads, unit.qk_dim, unit.v_dim) == (4, 12, 12)
    assert dims.parent_of is not None
    assert dims.parent_of.tolist() == [0, 0, 1, 3]
    assert dims.macs_per_entry == 2 * 17 * 48
    assert dims.params_per_entry == 2 * 48 + 1
    assert before.macs - unit.macs == 44 * dims.macs_per_entry
    assert before.params - unit.params == 44 * dims.params_per_entry
    assert (qk.reason, qk.macs_per_entry, qk.params_per_entry) == (None, 2 * 17 * 48, 2 * (48 + 1))
    assert (heads.own_macs, heads.own_params) == (before.groups[0].own_macs, before.groups[0].own_params)
    assert (heads.reason, dims.reason) == (None, None)
    assert {(a.name, a.per_entry) for a in heads.attributes} == {("num_heads", 1), ("attn_dim", 12)}
    assert units.branches["blocks.0.attn"].reason is None


def test_a_head_may_lose_all_its_dims_but_not_all_heads(vit: nn.Module) -> None:
    heads, dims = "blocks.0.attn:heads", "blocks.0.attn:v_dims"
    with pytest.raises(UsdcoreError, match=r"v_dims: nothing would be left in the blocks.0.attn:heads that stay"):
        shrink(vit, Plan(records=(keep(heads, [0]), keep(dims, range(12, 48)))), ONE)


def test_all_dims_of_the_heads_that_stay_are_plain(vit: nn.Module, images: Tensor) -> None:
    heads = keep("blocks.0.attn:heads", [1, 2])
    both = shrink(vit, Plan(records=(heads, keep("blocks.0.attn:v_dims", range(5, 37)))), ONE)
    alone = shrink(vit, Plan(records=(heads,)), ONE)
    assert type(both.blocks[0].attn.qkv) is type(both.blocks[0].attn.proj) is nn.Linear  # type: ignore[index, union-attr]
    with torch.no_grad():
        assert torch.equal(both(images), alone(images))


# --- other hosts


class Packed(nn.Module):
    """One projection for all three, its channels in any order of (part, head, dim)."""

    def __init__(self, order: tuple[int, int, int], parts: tuple[int, int, int] = (0, 1, 2), how: str = "") -> None:
        super().__init__()
        self.sizes, self.order, self.parts, self.how = (3, 4, 6), order, parts, how
        self.norm = nn.LayerNorm(24)
        self.qkv, self.out = nn.Linear(24, 72), nn.Linear(24, 24)
        self.between = nn.LayerNorm(24) if how == "norm" else nn.Identity()
        self.gate = nn.Parameter(torch.rand(24))

    def forward(self, x: Tensor) -> Tensor:
        B, N, _ = x.shape
        y = F.linear(self.norm(x), self.qkv.weight, self.qkv.bias) if self.how == "bare" else self.qkv(self.norm(x))
        if self.how == "scaled":
            y = y * 0.5
        y = y.view(B, N, *(self.sizes[i] for i in self.order))
        y = y.permute(*(2 + self.order.index(i) for i in (0,)), 0, 2 + self.order.index(1), 1, 2 + self.order.index(2))
        q, k, v = (y[self.parts[i]] for i in range(3))
        o = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(B, N, 24)
        if self.how == "gate":
            o = o * self.gate
        if self.how == "two":
            return x + self.out(o) + self.qkv(o)[..., :24]
        if self.how == "second":
            o = o + v.transpose(1, 2).reshape(B, N, 24)
        return x + self.out(self.between(o))


TOKENS = torch.zeros(1, 5, 24)


def check_host(model: nn.Module, kinds: tuple[str, ...] = ("qk_dims", "v_dims")) -> nn.Module:
    """Against masking, in float64."""
    model = randomise(model).double().eval()
    units = find_units(model, TOKENS)
    assert {group.kind for inside in units.nested.values() for group in inside} == set(kinds)
    plan = ragged_plan(units, 4, heads=False)
    x = torch.randn(3, 5, 24, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    small = shrink(model, plan, TOKENS)
    with torch.no_grad():
        expected = masked_output(model, units, plan, x)
        assert gap(expected, model(x)) > 1e-3
        assert gap(small(x), expected) < 1e-12
    assert gap(small(x).detach(), expected) < 1e-12
    assert counted_macs(small, x) == 3 * cost(units, plan).macs
    return small


@pytest.mark.parametrize("order", list(itertools.permutations(range(3))), ids=str)
def test_any_order_of_channels(order: tuple[int, int, int]) -> None:
    check_host(Layers(Packed(order)))


@pytest.mark.parametrize("parts", [(1, 2, 0), (2, 0, 1)], ids=str)
def test_parts_in_any_order(parts: tuple[int, int, int]) -> None:
    check_host(Layers(Packed((0, 1, 2), parts)))


def test_separate_projections_where_heads_are_fixed() -> None:
    """Sizes in the host's code that pin the number of heads do not pin their dims."""
    small = check_host(Layers(Block(merge="number")))
    assert all(isinstance(small.get_submodule(f"layers.0.mix.to_{part}"), Ragged) for part in "qkv")


@pytest.mark.parametrize("how", ["scaled", "gate", "second", "bare"])
def test_no_obstacle(how: str) -> None:
    """A number, a parameter with a position for each value, a second way past the core, a weight without its module."""
    check_host(Layers(Packed((0, 1, 2), how=how)))


def test_values_that_are_normalised_stay() -> None:
    check_host(Layers(Packed((0, 1, 2), how="norm")), ("qk_dims",))


@pytest.mark.parametrize(
    ("how", "reason"),
    [
        ("norm", "its entries are normalised together by layer_norm in layers.0.between"),
        ("two", "1 projections make the values and 2 read them"),
    ],
)
def test_refusals_say_why(how: str, reason: str) -> None:
    model = Layers(Packed((0, 1, 2), how=how))
    with pytest.raises(UsdcoreError, match=reason):
        shrink(model, Plan(records=(keep("layers.0:v_dims", [0]),)), TOKENS)


# --- the modules


@fast
@given(seed=seeds)
def test_every_form_of_the_modules_agrees(seed: int) -> None:
    """Any layout: what is computed equals a plain linear map with zeros in the weight."""
    rng = np.random.default_rng(seed)
    full = int(rng.choice([5, 20, 4 * FEW_RUNS]))
    layout = np.full(full, -1)
    chosen = rng.permutation(full)[: int(rng.integers(1, full + 1))]
    layout[np.sort(chosen) if rng.random() < 0.5 else chosen] = np.arange(len(chosen))
    layout_t, has_bias = tuple(int(i) for i in layout), bool(rng.random() < 0.7)
    writer = nn.Linear(4, len(chosen), bias=has_bias)
    reader = nn.Linear(len(chosen), 4, bias=has_bias)
    dense_in, dense_out = nn.Linear(4, full, bias=has_bias), nn.Linear(full, 4, bias=has_bias)
    with torch.no_grad():
        places = torch.tensor([layout_t.index(c) for c in range(len(chosen))])
        for parameter in (*dense_in.parameters(), dense_out.weight):
            parameter.zero_()
        dense_in.weight[places] = writer.weight
        dense_out.weight[:, places] = reader.weight
        if has_bias:
            dense_in.bias[places] = writer.bias
            dense_out.bias.copy_(reader.bias)
    lay_out(writer, "made", layout_t)
    lay_out(reader, "read", layout_t)
    assert (writer.out_features, reader.in_features) == (full, full)
    x = torch.randn(2, 3, 4, generator=torch.Generator().manual_seed(0))
    for grad in (True, False):
        with torch.set_grad_enabled(grad):
            torch.testing.assert_close(writer(x), dense_in(x), rtol=1e-5, atol=1e-6)
            torch.testing.assert_close(reader(dense_in(x)), dense_out(dense_in(x)), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("length", [8, 4 * FEW_RUNS])
def test_channels_of_a_convolution(length: int) -> None:
    layout = tuple(i // 2 if i % 2 else -1 for i in range(length))
    conv = nn.Sequential(nn.Conv2d(3, length // 2, 1), nn.BatchNorm2d(length // 2)).eval()
    x = torch.randn(2, 3, 4, 4)
    with torch.no_grad():
        expected = conv(x)
        lay_out(conv, "made", layout, axis=1)
        assert isinstance(conv, nn.Sequential)
        torch.testing.assert_close(conv(x)[:, 1::2], expected)
        assert not conv(x)[:, ::2].any()
        assert list(conv.state_dict()) == list(nn.Sequential(nn.Conv2d(3, 1, 1), nn.BatchNorm2d(1)).state_dict())
        lay_out(conv, "made", tuple(range(length // 2)), axis=1)
        assert type(conv) is nn.Sequential
        torch.testing.assert_close(conv(x), expected)


def test_dims_move_to_the_front_of_their_head() -> None:
    table = np.array([[2, 3, 4], [5, 6, 7]])
    stays = np.array([1, 1, 0, 1, 1, 1, 0, 1], dtype=bool)
    both = np.array([True, True])
    assert relaid(tuple(range(8)), [(table, both, False)], stays) == (0, 1, -1, 2, 3, 4, -1, 5)
    ragged = relaid(tuple(range(8)), [(table, both, True)], stays)
    assert ragged == (0, 1, 2, 3, -1, 4, 5, -1)
    gone = np.array([1, 1, 0, 0, 1, 1], dtype=bool)
    assert relaid(ragged, [(table, np.array([False, True]), True)], gone) == (0, 1, 2, 3, -1)
    assert layout_of(nn.Linear(2, 5), "made", 5) == (0, 1, 2, 3, 4)


# --- a ragged model is a model


@pytest.mark.parametrize("kind", list(KWARGS))
def test_saved_and_loaded(kind: str, images: Tensor, tmp_path: Path) -> None:
    base = base_of(kind)
    model = randomise(create(base)).eval()
    plan = Plan(base=base, records=ragged_plan(find_units(model, ONE), 4).records)
    small = shrink(model, plan)
    assert list(small.state_dict()) == list(model.state_dict())
    save(small, plan, tmp_path / "m.safetensors")
    with torch.no_grad():
        assert torch.equal(usdcore.load(tmp_path / "m.safetensors")(images), small(images))


@pytest.fixture
def small(vit: nn.Module) -> nn.Module:
    return shrunk(vit, 6)


def test_it_is_copied_and_trained(small: nn.Module, images: Tensor) -> None:
    twin = copy.deepcopy(small)
    optimizer = torch.optim.SGD(twin.train().parameters(), lr=0.1)
    twin(images).square().sum().backward()
    assert all(p.grad is not None and bool(p.grad.abs().sum() > 0) for p in twin.blocks[0].attn.qkv.parameters())  # type: ignore[index, union-attr]
    optimizer.step()
    with torch.no_grad():
        assert gap(twin.eval()(images), small(images)) > 1e-3
        assert twin(images[:0]).shape == (0, 7)


def test_autocast(small: nn.Module, images: Tensor) -> None:
    for grad in (True, False):
        with torch.set_grad_enabled(grad), torch.autocast("cpu", torch.bfloat16):
            out = small(images)
        assert out.dtype == torch.bfloat16
        assert gap(out.detach().float(), small(images).detach()) < 0.05


def test_export_and_transforms(small: nn.Module, images: Tensor) -> None:
    batch = {"x": {0: torch.export.Dim("batch", min=2, max=64)}}
    exported = torch.export.export(small, (images,), dynamic_shapes=batch).module()
    with torch.no_grad():
        assert gap(exported(images[:3]), small(images[:3])) < 1e-6
        alone = small.blocks[0].attn.qkv  # type: ignore[index, union-attr]
        x = torch.randn(4, 17, 48)
        torch.testing.assert_close(torch.vmap(alone)(x), alone(x))


def test_compile(small: nn.Module, images: Tensor) -> None:
    compiled = torch.compile(small.blocks[0], backend="eager", fullgraph=True)  # type: ignore[index]
    x = torch.randn(2, 17, 48)
    for grad in (True, False):
        with torch.set_grad_enabled(grad):
            torch.testing.assert_close(compiled(x), small.blocks[0](x))  # type: ignore[index]


def test_dropped_branches_beside(vit: nn.Module, images: Tensor) -> None:
    plan = ragged_plan(find_units(vit, ONE), 2)
    plan = plan.model_copy(
        update={"records": (*plan.records, Drop(branch="blocks.1.mlp"), Drop(branch="blocks.2.attn"))}
    )
    with torch.no_grad():
        assert gap(shrink(vit, plan, ONE)(images), masked(vit, plan)(images)) < 1e-4


def test_without_biases(images: Tensor) -> None:
    model = randomise(timm.create_model("vit_tiny_patch16_224", qkv_bias=False, proj_bias=False, **SMALL)).eval()
    plan = ragged_plan(find_units(model, ONE), 0)
    with torch.no_grad():
        assert gap(shrink(model, plan, ONE)(images), masked(model, plan)(images)) < 1e-4
    assert ONE.shape[1:] == INPUT
