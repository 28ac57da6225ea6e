"""The model that is looked at stays as it was, whatever state it is in."""

from __future__ import annotations

import copy
import gc
import weakref
from typing import Any

import pytest
import timm
import torch
from torch import Tensor, nn
from zoo import INPUT, KINDS, randomise

from usdcore.plans import Drop, Keep, Plan
from usdcore.surgery import shrink
from usdcore.units import find_units

ONE = torch.zeros(1, *INPUT)


def snapshot(model: nn.Module) -> list[Any]:
    """Everything that a module holds, by identity; tensors also by their bytes and version."""
    found: list[Any] = []
    for path, module in model.named_modules():
        for name, value in vars(module).items():
            found.append((path, name, id(value), repr(value) if isinstance(value, dict | int | float) else ""))
        found.append((path, type(module), id(module)))
    for name, tensor in model.state_dict(keep_vars=True).items():
        content = tensor.detach().numpy().tobytes()
        found.append((name, id(tensor), tensor._version, tensor.requires_grad, tensor.grad, content))
    return found


@pytest.mark.parametrize("training", [True, False])
def test_nothing_changes(model: nn.Module, training: bool) -> None:
    model.train(training)
    next(model.parameters()).requires_grad_(False)
    before, random = snapshot(model), torch.get_rng_state()
    find_units(model, ONE)
    assert snapshot(model) == before
    assert torch.equal(torch.get_rng_state(), random)


def test_caches_and_hooks_are_not_used() -> None:
    model = timm.create_model("levit_128s", num_classes=3).eval()
    calls: list[str] = []
    model.stem.register_forward_hook(lambda *_: calls.append("hook"))
    find_units(model, torch.zeros(1, 3, 224, 224))
    assert not calls
    assert all(not cache for m in model.modules() if (cache := getattr(m, "attention_bias_cache", None)) is not None)


def test_the_copy_is_let_go() -> None:
    alive: weakref.WeakSet[nn.Module] = weakref.WeakSet()

    class Marked(nn.Linear):
        def forward(self, x: Tensor) -> Tensor:
            alive.add(self)
            return super().forward(x)

    model = KINDS["vit"]()
    model.head = Marked(48, 7)
    units = find_units(model, ONE)
    gc.collect()
    assert units.macs
    assert not alive


def test_inputs_of_any_kind(vit: nn.Module) -> None:
    expected = find_units(vit, ONE)
    for inputs in (torch.zeros(5, *INPUT), torch.zeros(1, *INPUT, device="meta"), ONE.double(), (ONE,)):
        assert find_units(vit, inputs).macs == expected.macs


def test_double_and_training(model: nn.Module) -> None:
    expected = find_units(model, ONE)
    units = find_units(model.double().train(), ONE)
    assert (units.macs, units.params, list(units.groups)) == (expected.macs, expected.params, list(expected.groups))


def test_a_model_on_the_meta_device() -> None:
    with torch.device("meta"):
        model = KINDS["deit"]()
    assert len(find_units(model, ONE).blocks) == 3


def test_a_shrunk_model(model: nn.Module, fused: bool) -> None:
    units = find_units(model, ONE)
    plan = Plan(
        records=(
            Keep(group="blocks.0.attn:heads", indices=(1,)),
            Keep(group="blocks.1.attn:heads", indices=(0, 2, 3)),
            Keep(group="blocks.2.mlp:hidden", indices=(0, 5, 7)),
            Drop(branch="blocks.1.mlp"),
        )
    )
    small = shrink(model, plan, ONE)
    found = find_units(small, ONE)
    assert [unit.num_heads for unit in found.attention] == [1, 3, 4]
    assert [unit.hidden for unit in found.ffn] == [units.ffn[0].hidden, 3]
    assert all(unit.qk_dim == unit.v_dim == 12 for unit in found.attention)
    assert found.blocks[1].units == ("blocks.1.attn",)
    assert all(group.reason is None for unit in found.all for group in unit.groups[:1])
    assert all(branch.reason is None for branch in found.branches.values())


class Sum:
    """A forward that is an object with references to modules, put on an instance."""

    def __init__(self, block: nn.Module) -> None:
        self.block = block

    def __call__(self, x: Tensor, *_: Any) -> Tensor:
        x = x + self.block.attn(self.block.norm1(x))  # type: ignore[operator]
        return x + self.block.mlp(self.block.norm2(x))  # type: ignore[operator]


def test_a_replaced_forward(vit: nn.Module) -> None:
    expected = find_units(vit, ONE)
    block = vit.get_submodule("blocks.1")
    block.forward = Sum(block)
    units = find_units(vit, ONE)
    assert units.macs == expected.macs
    assert "is not in a method of blocks.1" in (units.branches["blocks.1.mlp"].reason or "")
    assert block.forward.block is block


def test_a_model_that_ran_before(vit: nn.Module, images: Tensor) -> None:
    vit.train()(images).sum().backward()
    gradients = {name: p.grad.clone() for name, p in vit.named_parameters() if p.grad is not None}
    find_units(vit, ONE)
    assert all(torch.equal(p.grad, gradients[name]) for name, p in vit.named_parameters() if p.grad is not None)
    assert copy.deepcopy(vit)(images).shape == (5, 7)


def test_randomised_weights_do_not_matter() -> None:
    a, b = KINDS["layer_scale"](), randomise(KINDS["layer_scale"](), seed=3)
    assert list(find_units(a, ONE).groups) == list(find_units(b, ONE).groups)
