"""An optimizer's state goes through surgery: the small model's first step is the masked model's, entry by entry."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch
from test_surgery import ONE, masked, random_plan
from tiny import finished, write_tiny
from torch import nn
from zoo import INPUT, KINDS, randomise

from usdcore.engine import phases
from usdcore.engine.carry import Carried, cut, cut_tensors, put, put_tensors, take
from usdcore.engine.checkpoint import read_state, write_state
from usdcore.engine.fit import Fit, Stage
from usdcore.runner import detach
from usdcore.surgery import kept_positions, shrink, slice_tensor
from usdcore.units import find_units

OPTIMIZERS = {
    "adamw": lambda parameters: torch.optim.AdamW(parameters, lr=1e-2, weight_decay=0.05),
    "amsgrad": lambda parameters: torch.optim.Adam(parameters, lr=1e-2, amsgrad=True),
    "momentum": lambda parameters: torch.optim.SGD(parameters, lr=1e-2, momentum=0.9, weight_decay=0.01),
    "rmsprop": lambda parameters: torch.optim.RMSprop(parameters, lr=1e-3, momentum=0.5),
}


def step(model: nn.Module, optimizer: torch.optim.Optimizer, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    images, target = torch.randn(6, *INPUT, generator=generator), torch.arange(6) % 7
    output = model.train()(images.to(next(model.parameters()).dtype))
    output = output if isinstance(output, torch.Tensor) else output[0]
    loss = nn.functional.cross_entropy(output, target)
    optimizer.zero_grad()
    loss.backward()
    nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    optimizer.step()


CASES = [(kind, name, torch.float64) for kind in KINDS for name in OPTIMIZERS]
CASES += [(kind, name, torch.float32) for kind in KINDS for name in ("adamw", "momentum")]


@pytest.mark.parametrize(("kind", "name", "dtype"), CASES)
def test_the_first_step_is_the_masked_models(kind: str, name: str, dtype: torch.dtype) -> None:
    """Three dense steps, then one step masked and one shrunk with the state carried; fresh state would differ.

    A key's bias cancels in the softmax: its gradient is rounding alone, which Adam scales up to a whole step. In double
    precision the optimizer's epsilon is far above it, in single precision that third of `qkv.bias` is left out.
    """
    model = randomise(KINDS[kind]()).to(dtype)
    optimizer = OPTIMIZERS[name](model.parameters())
    for seed in range(3):
        step(model, optimizer, seed)
    plan = random_plan(model, 4)
    slices = kept_positions(find_units(model, ONE), plan)

    whole = masked(model, plan)
    whole_optimizer = OPTIMIZERS[name](whole.parameters())
    assert put(take(optimizer, model), whole_optimizer, whole) == []
    small = shrink(model, plan, ONE)
    small_optimizer = OPTIMIZERS[name](small.parameters())
    assert put(cut(take(optimizer, model), slices), small_optimizer, small) == []
    fresh = copy.deepcopy(small)
    fresh_optimizer = OPTIMIZERS[name](fresh.parameters())

    for one, its in ((whole, whole_optimizer), (small, small_optimizer), (fresh, fresh_optimizer)):
        step(one, its, 9)
    detach(whole)
    before, large = dict(model.named_parameters()), dict(whole.named_parameters())
    others, gap = dict(fresh.named_parameters()), 0.0
    for key, parameter in small.named_parameters():
        expected = slice_tensor(large[key], slices.get(key, {}))
        off = (parameter - expected).detach().abs()
        if key.endswith("qkv.bias") and dtype == torch.float32:
            part = torch.arange(3).repeat_interleave(len(before[key]) // 3)
            off = off[slice_tensor(part, slices.get(key, {})) != 1]
        assert off.max() < (1e-6 if dtype == torch.float32 else 1e-10), key
        assert not torch.equal(parameter, slice_tensor(before[key], slices.get(key, {})))
        gap = max(gap, float((others[key] - expected).detach().abs().max()))
    assert gap > 1e-4  # the negative control


def test_state_of_another_shape_is_dropped_with_a_note(vit: nn.Module) -> None:
    optimizer = torch.optim.AdamW(vit.parameters())
    step(vit, optimizer, 0)
    weight = vit.blocks[0].mlp.fc1.weight
    optimizer.state[weight]["row"] = torch.ones(len(weight))
    plan = random_plan(vit, 4)
    found = cut(take(optimizer, vit), kept_positions(find_units(vit, ONE), plan))
    assert found.notes == ["blocks.0.mlp.fc1.weight: row does not have the weight's shape"]
    assert "blocks.0.mlp.fc1.weight" not in found.state


def test_another_optimizer_starts_afresh(vit: nn.Module) -> None:
    optimizer = torch.optim.AdamW(vit.parameters())
    step(vit, optimizer, 0)
    other = torch.optim.SGD(vit.parameters(), lr=0.1, momentum=0.9)
    (note,) = put(take(optimizer, vit), other, vit)
    assert note == "the optimizer is SGD now and was AdamW: its state starts afresh"
    assert not other.state


def test_what_groups_count_is_carried(vit: nn.Module) -> None:
    first, second = (torch.optim.SGD(vit.parameters(), lr=lr) for lr in (0.1, 0.2))
    first.param_groups[0]["num_steps"] = 7
    put(take(first, vit), second, vit)
    assert (second.param_groups[0]["num_steps"], second.param_groups[0]["lr"]) == (7, 0.2)


def test_it_goes_through_a_checkpoint(vit: nn.Module, tmp_path: Path) -> None:
    optimizer = torch.optim.AdamW(vit.parameters())
    step(vit, optimizer, 0)
    plan = random_plan(vit, 4)
    slices = kept_positions(find_units(vit, ONE), plan)
    carried = Carried(take(optimizer, vit), None, dict(vit.state_dict())).cut(slices)
    write_state({"carried": carried.state_dict()}, tmp_path / "x.safetensors")
    again = Carried.of_state(read_state(tmp_path / "x.safetensors")["carried"])
    assert again.optimizer.shapes == carried.optimizer.shapes
    for name, state in carried.optimizer.state.items():
        assert all(torch.equal(value, again.optimizer.state[name][key]) for key, value in state.items())
    small, other = shrink(vit, plan, ONE), randomise(shrink(vit, plan, ONE), 5)
    assert again.weights is not None
    put_tensors(again.weights, other)
    assert all(torch.equal(a, b) for a, b in zip(small.parameters(), other.parameters(), strict=True))


def test_tensors_that_no_longer_fit_stay(vit: nn.Module) -> None:
    tensors = cut_tensors(vit.state_dict(), {})
    tensors["head.bias"] = torch.zeros(3)
    before = vit.head.bias.detach().clone()
    put_tensors(tensors, vit)
    assert torch.equal(vit.head.bias, before)


def test_a_run_hands_its_state_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The optimizers of a phase begin with the moments of the one before; the average goes on beside the weights."""
    begun: dict[str, tuple[int, int, bool]] = {}
    real = phases.Run._begin

    def begin(self: phases.Run, stage: Stage, phase: object) -> Fit:
        fit = real(self, stage, phase)  # type: ignore[arg-type]
        assert fit.ema is not None
        apart = not torch.equal(fit.model.head.weight, fit.ema.module.head.weight)
        gates = fit.strategy_optimizer.state if fit.strategy_optimizer is not None else {}
        begun[stage.name] = len(fit.optimizer.state), len(gates), apart
        for group in fit.optimizer.param_groups:
            for parameter in group["params"]:
                state = fit.optimizer.state.get(parameter)
                assert state is None or state["exp_avg"].shape == parameter.shape
        return fit

    monkeypatch.setattr(phases.Run, "_begin", begin)
    result = finished(write_tiny(tmp_path), tmp_path / "carry", "train.ema=0.9")
    hidden = [layer["ffn"]["hidden"] for layer in result["structure"]]
    assert min(hidden) < 128
    assert begun["dense"] == (0, 0, False)
    assert begun["search"][0] > 20
    assert begun["search"][1:] == (0, True)  # its gates are new
    assert begun["finetune"][0] > 10
    assert begun["finetune"][1] > 0
    assert begun["finetune"][2]
