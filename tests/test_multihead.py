"""torch's own attention module and encoder layer are the same in code that can be cut, and are cut like any other."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from zoo import gap, randomise

from usdcore.multihead import Multihead, open_up
from usdcore.plans import Drop, Keep, Plan
from usdcore.surgery import shrink
from usdcore.units import find_units


def both(**options: Any) -> tuple[nn.Module, nn.Module]:
    module = randomise(nn.MultiheadAttention(24, 4, **options)).double()
    opened = copy.deepcopy(module)
    open_up(opened)
    assert type(opened) is Multihead
    return module, opened


def tokens(batch: int, length: int, seed: int = 0) -> Tensor:
    return torch.randn(batch, length, 24, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("mode", ["train", "eval", "no grad"])
@pytest.mark.parametrize("weights", [False, True])
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("cross", [False, True])
def test_equal_to_torchs_own(mode: str, weights: bool, bias: bool, cross: bool) -> None:
    module, opened = both(bias=bias, batch_first=True)
    q = tokens(3, 5)
    k = tokens(3, 7, 1) if cross else q
    with torch.set_grad_enabled(mode != "no grad"):
        for masks in _masks(k.shape[1]):
            for m in (module, opened):
                m.train(mode == "train")
            (a, wa), (b, wb) = (m(q, k, k, need_weights=weights, **masks) for m in (module, opened))
            assert gap(b.detach(), a.detach()) < 1e-12
            assert (wa is None) == (wb is None)
            assert wa is None or gap(wb.detach(), wa.detach()) < 1e-12  # type: ignore[union-attr]


def _masks(length: int) -> list[dict[str, Any]]:
    padding = torch.zeros(3, length, dtype=torch.bool)
    padding[1, 2:] = True
    own = torch.rand(5, length, generator=torch.Generator().manual_seed(2)) < 0.3
    own[:, 0] = False
    each = own.expand(12, 5, length).clone()
    return [{}, {"key_padding_mask": padding}, {"attn_mask": own}, {"attn_mask": each},
            {"attn_mask": own.double() * -3, "key_padding_mask": padding.double() * -2},
            {"attn_mask": own, "average_attn_weights": False}]  # fmt: skip


def test_sequence_first_and_one_sequence() -> None:
    module, opened = both()
    x = tokens(5, 3)
    for inputs in (x, x[:, 0]):
        (a, wa), (b, wb) = (m(inputs, inputs, inputs) for m in (module, opened))
        assert gap(b.detach(), a.detach()) < 1e-12
        assert gap(wb.detach(), wa.detach()) < 1e-12


@pytest.mark.parametrize("options", [{"kdim": 12, "vdim": 12}, {"add_bias_kv": True}, {"add_zero_attn": True}])
def test_other_layouts_stay(options: dict[str, Any]) -> None:
    module = nn.MultiheadAttention(24, 4, **options)
    open_up(module)
    assert type(module) is nn.MultiheadAttention


@pytest.mark.parametrize("norm_first", [False, True])
def test_torchs_encoder_is_cut_to_the_bone(norm_first: bool) -> None:
    layer = nn.TransformerEncoderLayer(24, 4, 32, batch_first=True, norm_first=norm_first)
    model = randomise(nn.TransformerEncoder(layer, 3, enable_nested_tensor=False)).double().eval()
    x = tokens(3, 6)
    units = find_units(model, x)
    assert all(group.reason is None for group in units.groups.values())
    assert all(branch.reason is None for branch in units.branches.values())
    plan = Plan(
        records=(
            Keep(group="layers.0.self_attn:heads", indices=(1, 3)),
            Keep(group="layers.1.linear1:hidden", indices=tuple(range(0, 32, 3))),
            Drop(branch="layers.2.self_attn"),
        )
    )
    small = shrink(model, plan, x)
    masked = copy.deepcopy(model)
    with torch.no_grad():
        gone = torch.tensor([h in (0, 2) for h in range(4)]).repeat_interleave(6)
        masked.layers[0].self_attn.out_proj.weight[:, gone] = 0.0  # type: ignore[index, union-attr]
        masked.layers[1].linear2.weight[:, [i for i in range(32) if i % 3]] = 0.0  # type: ignore[index, union-attr]
        masked.layers[2].self_attn.out_proj.weight.zero_()  # type: ignore[index, union-attr]
        masked.layers[2].self_attn.out_proj.bias.zero_()  # type: ignore[index, union-attr]
        assert gap(small(x), masked(x)) < 1e-12
        assert gap(small(x), model(x)) > 1e-3
    assert "layers.2.self_attn.in_proj_weight" not in small.state_dict()
    assert sum(p.numel() for p in small.parameters()) < units.params
