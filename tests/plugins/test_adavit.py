"""AdaViT from outside: what it reads and adds, how it decides, masked equals skipping, exact MACs, targets."""

from __future__ import annotations

import copy

import pytest
import torch
from adapting import begun, executed, gating, make, scattered, session_of, train
from counting import counted_macs
from torch import nn
from zoo import INPUT, KINDS, gap, randomise

from usdcore.construct import create
from usdcore.gates import Gating, TokenDraw
from usdcore.plans import Base, Plan
from usdcore.runner import set_mode
from usdcore.strategy import Attachment, Budget
from usdcore.units import find_units
from usdcore_adavit.policy import certain, edge_of, gumbel_sigmoid, mean_usage

# --- what it adds


@pytest.mark.parametrize(("name", "parameters"), [("t2t_vit_19", 81_269), ("deit_small_patch16_224", 38_500)])
def test_parameters_are_those_of_three_linear_maps_per_block(name: str, parameters: int) -> None:
    """T2T-ViT-19: 19 (448 + 1) + 18 (448 * 7 + 7) + 18 (448 * 2 + 2) = 81,269."""
    with torch.device("meta"):
        model = create(Base(name=name, num_classes=1000, input_shape=(3, 224, 224)))
    units = find_units(model, torch.zeros(1, 3, 224, 224, device="meta"))
    budget = Budget("macs", 0.5, batch_size=1, scope="sample")
    site = Attachment(model, units, budget, Plan(), Gating(), lambda *_: None, (3, 224, 224))  # type: ignore[arg-type, return-value]
    site.current = strategy = make()
    strategy.attach(site)
    assert sum(p.numel() for gate in strategy.policy_gates for p in gate.parameters()) == parameters
    assert strategy.policy_gates[0].macs() == 196 * units.blocks[-1].width  # tokens alone
    heads = {"t2t_vit_19": 7, "deit_small_patch16_224": 6}[name]
    assert strategy.policy_gates[1].macs() == (196 + heads + 2) * units.blocks[-1].width


def test_the_first_blocks_decide_about_tokens_alone(vit: nn.Module) -> None:
    strategy = make(keep_layers=2)
    session_of(vit, [strategy], target=0.9)
    assert strategy.gates["blocks.1"].sites == ("blocks.1:tokens",)
    last = ("blocks.2.attn", "blocks.2.mlp", "blocks.2.attn:heads", "blocks.2.mlp:head_columns", "blocks.2:tokens")
    assert strategy.gates["blocks.2"].sites == last


# --- decisions


def test_gumbel_sigmoid_is_hard_forward_and_soft_backward() -> None:
    torch.manual_seed(0)
    logit = torch.full((20_000,), 0.8, requires_grad=True)
    keep = gumbel_sigmoid(logit, tau=5.0, edge=0.0)
    assert set(keep.unique().tolist()) == {0.0, 1.0}
    assert abs(float(keep.detach().mean()) - torch.sigmoid(torch.tensor(0.8))) < 0.01  # tau moves no sign
    keep.sum().backward()
    assert logit.grad is not None
    assert float(logit.grad.min()) > 0
    assert float(logit.grad.max()) <= 0.25 / 5 + 1e-6


def test_without_noise_it_decides_as_in_evaluation() -> None:
    logit, edge = torch.linspace(-4, 4, 801), edge_of(0.6, tau=5.0)
    keep = gumbel_sigmoid(logit, tau=5.0, edge=edge, noise=0.0)
    assert torch.equal(keep, certain(logit, edge))
    assert torch.equal(keep == 1, torch.sigmoid(logit / 5) > 0.6)


def test_noise_falls_in_the_phase_that_makes_the_gates(images: torch.Tensor) -> None:
    strategy = make()
    session = begun([strategy])
    for step, noise in ((0, 1.0), (25, 0.75), (100, 0.0)):
        session.begin_step(step, 100)
        assert {gate.noise for gate in strategy.policy_gates} == {noise}
    session.end_phase(lambda: iter([images]))
    session.begin_phase([strategy])
    session.begin_step(0, 100)
    assert {gate.noise for gate in strategy.policy_gates} == {0.0}


def test_neutral_is_identical(model: nn.Module, images: torch.Tensor) -> None:
    with torch.no_grad():
        original = {training: model.train(training)(images) for training in (False, True)}
    session = session_of(model, [make()])
    for gate in gating(session).all():
        gate.neutral()
    with torch.no_grad():
        for training, wanted in original.items():
            assert gap(session.model.train(training)(images), wanted) < 1e-5


def test_masked_equals_skipping(model: nn.Module, fused: bool, images: torch.Tensor) -> None:
    """Branches, heads and tokens of each image its own, of all kinds of plain ViT."""
    strategy = make(keep_layers=0)
    session = session_of(model, [strategy])
    scattered(session, strategy, images)
    model = session.model.eval()
    with torch.no_grad():
        skipping = model(images)
        state = gating(session).state
        assert len({float(count) for count in state.counts["blocks.1.attn"]}) > 1
        assert 0 < float(state.dynamic["blocks.1.attn:heads"].mean()) < 1
        assert {float(state.dynamic[f"blocks.{i}.{b}"].mean()) for i in range(3) for b in ("attn", "mlp")} - {0.0, 1.0}
        set_mode(model, "masked")
        assert gap(model(images), skipping) < 1e-5


def test_executed_macs_are_those_counted(model: nn.Module, images: torch.Tensor) -> None:
    """To the digit: gates, tokens, layers, and heads, which are not computed where they are off."""
    strategy = make(keep_layers=0)
    session = session_of(model, [strategy])
    scattered(session, strategy, images)
    counted = counted_macs(session.model.eval(), images)
    assert executed(session, images) == counted
    assert counted < 0.7 * session.dense.macs * len(images)


def test_executed_macs_with_all_heads_on(vit: nn.Module, images: torch.Tensor) -> None:
    strategy = make()
    session = session_of(vit, [strategy])
    scattered(session, strategy, images)
    with torch.no_grad():
        for gate in strategy.policy_gates[1:]:
            gate.heads.bias.fill_(1e3)
    counted = counted_macs(session.model.eval(), images)
    assert executed(session, images) == counted


def test_tokens_come_back_and_the_class_token_stays(vit: nn.Module, images: torch.Tensor) -> None:
    strategy = make(layers=False, heads=None)
    session = session_of(vit, [strategy])
    with torch.no_grad():
        for gate, bias in zip(strategy.policy_gates, (1e3, -1e3, 1e3), strict=True):
            gate.tokens.bias.fill_(bias)
    session.model.eval()(images)
    counts = gating(session).state.counts
    assert [int(counts[f"blocks.{i}.mlp"][0]) for i in range(3)] == [17, 1, 17]


def test_distillation_tokens_stay_too(images: torch.Tensor) -> None:
    session = session_of(randomise(KINDS["distilled"]()).eval(), [strategy := make()])
    session.model.eval()(images)
    draw = gating(session).state.draws["blocks.0:tokens"][0]
    assert isinstance(draw, TokenDraw)
    assert (draw.attention, draw.is_fixed_key) == ("outer", True)
    assert bool((draw.keep[:, :2] == 1).all())
    assert strategy.policy_gates[0].fewest_tokens == 2


@pytest.mark.parametrize("heads", ["attention", "width"])
def test_a_head_that_is_off_gives_zeros(vit: nn.Module, images: torch.Tensor, heads: str) -> None:
    """For the projection, and in width mode the columns at its place for the FFN too."""
    strategy = make(layers=False, tokens=False, heads=heads)
    session = session_of(vit, [strategy], target=0.9)
    with torch.no_grad():
        strategy.gates["blocks.1"].heads.bias.copy_(torch.tensor([1e3, -1e3, 1e3, 1e3]))
    seen: list[torch.Tensor] = []
    block = session.model.get_submodule("blocks.1")
    for path in ("attn.proj", "mlp.fc1"):
        block.get_submodule(path).register_forward_hook(lambda _, args, __: seen.append(args[0]))
    session.model.train()(images)
    for x, is_masked in zip(seen, (True, heads == "width"), strict=True):
        assert bool((x[..., 12:24] == 0).all()) == is_masked
        assert not bool((x[..., :12] == 0).all())


@pytest.mark.parametrize("heads", ["attention", None])
def test_other_modes_of_heads(vit: nn.Module, images: torch.Tensor, heads: str | None) -> None:
    strategy = make(heads=heads)
    session = session_of(vit, [strategy])
    scattered(session, strategy, images)
    counted = counted_macs(session.model.eval(), images)
    assert executed(session, images) == counted
    with torch.no_grad():
        skipping = session.model(images)
        set_mode(session.model, "masked")
        assert gap(session.model(images), skipping) < 1e-5


def test_maps_learn_from_the_task(vit: nn.Module, images: torch.Tensor) -> None:
    strategy = make()
    session = session_of(vit, [strategy])
    session.model.train()(images).square().sum().backward()
    maps = [m for gate in strategy.policy_gates for m in (gate.heads, gate.layers, gate.tokens) if m is not None]
    maps.remove(strategy.policy_gates[-1].tokens)  # nothing reads patches after the last block
    assert len(maps) == 6
    assert all(m.weight.grad is not None and float(m.weight.grad.abs().sum()) > 0 for m in maps)


# --- losses and targets


def test_usage_losses(vit: nn.Module, images: torch.Tensor) -> None:
    strategy = make(target=0.5, head_target=0.25, layer_weight=3.0)
    session = session_of(vit, [strategy])
    session.begin_step(0, 10)
    losses = session.losses(session.model.train()(images), torch.zeros(5))
    state = gating(session).state
    layers = torch.stack([state.dynamic[f"blocks.{i}.{b}"] for i in (1, 2) for b in ("attn", "mlp")]).mean()
    tokens = torch.stack([state.factor(f"blocks.{i}:tokens")[:, 1:] for i in range(3)]).mean()  # type: ignore[index]
    torch.testing.assert_close(losses["layers_usage"], 3.0 * (layers - 0.5).abs())
    torch.testing.assert_close(losses["tokens_usage"], 2.0 * (tokens - 0.5) ** 2)
    assert set(losses) == {"heads_usage", "layers_usage", "tokens_usage"}


def test_usage_of_heads_leaves_out_blocks_that_are_passed_by() -> None:
    heads = [torch.tensor([1.0, 0.5]), torch.tensor([0.0, 0.25])]
    alive = [torch.tensor([1.0, 1.0]), torch.tensor([0.0, 1.0])]
    assert float(mean_usage(heads, alive)) == pytest.approx((1.0 + 0.5 + 0.25) / 3)
    assert float(mean_usage(heads)) == pytest.approx(1.75 / 4)


def test_training_comes_to_its_targets(vit: nn.Module) -> None:
    strategy = make(target=0.6, head_target=0.8, init_logit=1.0)
    session = session_of(vit, [strategy])
    images = torch.randn(32, *INPUT, generator=torch.Generator().manual_seed(5))
    train(session, 60, images, lr=3e-3)
    seen: dict[str, list[float]] = {"heads": [], "layers": [], "tokens": []}
    for _ in range(20):
        session.model(images)
        for kind, usage in strategy.usage(session.ctx).items():
            seen[kind].append(float(usage.detach()))
    found = {kind: sum(own) / len(own) for kind, own in seen.items()}
    assert found == pytest.approx({"heads": 0.8, "layers": 0.6, "tokens": 0.6}, abs=0.08)


@pytest.mark.parametrize("budget", [0.45, 0.7, 1.0])
def test_targets_follow_from_the_budget(vit: nn.Module, images: torch.Tensor, budget: float) -> None:
    strategy = make(init_logit=-50.0)
    session = session_of(vit, [strategy], target=budget)
    usage = strategy.targets.heads
    assert usage is not None
    assert strategy.targets.layers == strategy.targets.tokens == usage
    if budget == 1.0:
        assert usage > 0.99  # the gates themselves cost a little
        return
    # Draws at just this usage cost what the budget says.
    state = gating(session).state
    for gate in strategy.policy_gates:
        for name in gate.policy.layers:
            state.dynamic[name] = torch.tensor(usage)
        for group in gate.policy.heads:
            state.dynamic |= {site: torch.full((group.count,), usage) for site in group.sites}
        for branch in gate.policy.branches:
            state.counts[branch] = torch.tensor(1 + usage * 16)
    session.begin_step(0, 10)
    session.losses(torch.zeros(5, 7), torch.zeros(5))
    assert session.ctx.spent is not None
    assert float(session.ctx.spent) == pytest.approx(budget, abs=2e-3)


def test_a_stated_target_is_not_solved_for(vit: nn.Module) -> None:
    stated, free = make(token_target=0.9), make()
    session_of(copy.deepcopy(vit), [stated], target=0.6)
    session_of(vit, [free], target=0.6)
    assert stated.targets.tokens == 0.9
    assert stated.targets.heads == stated.targets.layers < free.targets.heads


def test_calibration_turns_all_logits_to_the_budget(vit: nn.Module) -> None:
    strategy = make(heads=None)
    session = session_of(vit, [strategy], target=0.6)
    batches = [torch.randn(16, *INPUT, generator=torch.Generator().manual_seed(i)) for i in range(4)]
    scattered(session, strategy, torch.cat(batches))
    found = session.calibrate(lambda: iter(batches))
    assert found is not None
    assert abs(found.execution.macs / session.dense.macs - 0.6) < 0.005
    assert {gate.threshold for gate in strategy.policy_gates} == {found.threshold}
