"""USDC's strategies from outside: neutral start, sign rule, Eq. 8 both ways, Eq. 9's term, groups, search, and what
stays.
"""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from counting import counted_macs
from torch import nn
from zoo import INPUT, gap

from usdcore.costs import Tree, cost
from usdcore.errors import UsdcoreError
from usdcore.executed import batch_macs
from usdcore.gates import Draw, ForwardState
from usdcore.hooks import registry
from usdcore.plans import Plan
from usdcore.runner import gating_of, set_mode
from usdcore.session import Session
from usdcore.strategy import Budget, Strategy
from usdcore_usdc.relax import keep_factor, straight_through

ONE = torch.zeros(1, *INPUT)


def make(name: str, **options: Any) -> Strategy:
    config = registry().config("strategy", name).model_validate({"use": name, **options})
    return registry().load("strategy", name)(config)


def session_of(model: nn.Module, strategies: list[Strategy], target: float = 0.5, **budget: Any) -> Session:
    session = Session(model, ONE, Budget("macs", target, batch_size=4, **budget))
    session.begin_phase(strategies)
    return session


def train(session: Session, steps: int, images: torch.Tensor, lr: float = 1e-3) -> list[float]:
    torch.manual_seed(0)
    groups = [{"params": g.parameters, "lr": g.lr or lr} for g in session.parameter_groups]
    optimizer = torch.optim.Adam(groups)
    spent = []
    session.model.train()
    for step in range(steps):
        session.begin_step(step, steps)
        output = session.model(images)
        session.loss(output, torch.zeros(len(images), dtype=torch.long)).backward()
        optimizer.step()
        optimizer.zero_grad()
        spent.append(float(session.ctx.spent.detach()))  # type: ignore[union-attr]
    return spent


# --- relaxations


def test_straight_through_is_hard_forward_and_soft_backward() -> None:
    logit = torch.tensor([-2.0, 0.5], requires_grad=True)
    hard = straight_through(logit, tau=1.0)
    assert hard.tolist() == [0.0, 1.0]
    hard.sum().backward()
    soft = torch.sigmoid(logit.detach())
    torch.testing.assert_close(logit.grad, soft * (1 - soft))


def test_gumbel_pair_keeps_with_the_softmax_probability() -> None:
    torch.manual_seed(0)
    pair = torch.tensor([[0.8, -0.4]]).repeat(20_000, 1)
    kept = keep_factor(pair, tau=1.0, noise=1.0, hard=True).mean()
    assert abs(float(kept) - float(torch.softmax(pair[0], 0)[0])) < 0.01


def test_without_noise_it_is_the_softmax() -> None:
    pair = torch.randn(5, 2)
    torch.testing.assert_close(keep_factor(pair, 1.0, 0.0, hard=False), torch.softmax(pair, -1)[:, 0])


# --- static


@pytest.mark.parametrize("options", [{}, {"mix": "literal"}, {"relaxation": "softmax", "hard": False}])
@pytest.mark.parametrize("training", [False, True])
def test_neutral_is_identical(
    fused: bool, vit: nn.Module, images: torch.Tensor, options: dict[str, Any], training: bool
) -> None:
    """Its options; other models are tried by the conformance kit."""
    with torch.no_grad():
        original = vit.train(training)(images)
    session = session_of(vit, [make("usdc-static", **options), make("usdc-dynamic")])
    for gate in gating_of(session.model).all():  # type: ignore[union-attr]
        gate.neutral()
    with torch.no_grad():
        assert gap(session.model.train(training)(images), original) < 1e-5


def test_literal_mix_is_equation_8(vit: nn.Module) -> None:
    """Z'' = g a0 Z' + (1-g) a1 Z, with Z' = Z + delta."""
    a0, g = torch.tensor(0.7), torch.tensor([1.0, 0.0])
    z, delta = torch.randn(2, 3, 4), torch.randn(2, 3, 4)
    state = ForwardState()
    state.record({"b": Draw(a0, 1 - a0)}, is_static=True)
    state.record({"b": Draw(g)}, is_static=False)
    around, keep = state.around("b"), state.factor("b")
    assert around is not None
    assert keep is not None
    got = around[:, None, None] * z + keep[:, None, None] * delta
    g_ = g[:, None, None]
    torch.testing.assert_close(got, g_ * a0 * (z + delta) + (1 - g_) * (1 - a0) * z)


def test_convex_mix_leaves_the_stream_unscaled() -> None:
    state = ForwardState()
    state.record({"b": Draw(torch.tensor(0.3))}, is_static=True)
    assert state.around("b") is None


def test_sign_rule(vit: nn.Module, images: torch.Tensor) -> None:
    static = make("usdc-static")
    session = session_of(vit, [static], target=0.9)
    gate = static.gates["model"]
    with torch.no_grad():
        gate.pairs[5] = torch.tensor([-0.1, 0.1])  # type: ignore[index]
        gate.pairs[6] = torch.tensor([0.1, -0.1])  # type: ignore[index]
    session.model.eval()(images)
    keeps = torch.cat([k.reshape(-1) for k in gating_of(session.model).state.static.values()])  # type: ignore[union-attr]
    assert (keeps == 0).nonzero().flatten().tolist() == [5]


def test_it_starts_near_the_dense_cost(vit: nn.Module, images: torch.Tensor) -> None:
    session = session_of(vit, [make("usdc-static", relaxation="softmax", hard=False)])
    assert train(session, 1, images)[0] > 0.85


def test_the_search_meets_the_budget_by_itself_and_really_shrinks(vit: nn.Module, images: torch.Tensor) -> None:
    dense = sum(p.numel() for p in vit.parameters())
    session = session_of(vit, [make("usdc-static", lr=0.05)], target=0.6)
    spent = train(session, 150, images)
    end = session.end_phase(lambda: iter([images]))
    assert spent[0] > 0.8
    assert end.searched is not None
    assert abs(end.searched - 0.6) < 0.05
    assert sum(p.numel() for p in session.model.parameters()) < dense
    macs = counted_macs(session.model.eval(), images) / 5 / session.dense.macs
    assert 0.595 < macs <= 0.6


def test_resource_term_is_added_once(vit: nn.Module, images: torch.Tensor) -> None:
    session = session_of(vit, [make("usdc-static"), make("usdc-dynamic")])
    session.begin_step(9, 10)
    losses = session.losses(session.model.train()(images), torch.zeros(5))
    assert set(losses) == {"resource"}
    torch.testing.assert_close(losses["resource"], 100 * (session.ctx.spent - 0.5) ** 2)  # type: ignore[operator]


def test_the_target_falls_in_a_line_at_the_start_of_a_search(vit: nn.Module, images: torch.Tensor) -> None:
    session = session_of(vit, [make("usdc-static", ramp=0.5)])
    for step, target in ((0, 1.0), (25, 0.75), (50, 0.5), (90, 0.5)):
        session.begin_step(step, 100)
        loss = session.losses(session.model.train()(images), torch.zeros(5))["resource"]
        torch.testing.assert_close(loss, 100 * (session.ctx.spent - target) ** 2)  # type: ignore[operator]


def test_static_bound(vit: nn.Module, images: torch.Tensor) -> None:
    session = session_of(vit, [make("usdc-static", lr=0.05), make("usdc-dynamic")], target=0.5, static=0.7)
    train(session, 100, images)
    session.end_phase(lambda: iter([images]))
    assert Tree(session.units).total / session.dense.macs <= 0.7


# --- dynamic


def test_decisions_are_shared_by_groups(vit: nn.Module) -> None:
    dynamic = make("usdc-dynamic", gate_network="G1", split={"use": "average", "size": 2}, noise=[0.0, 0.0])
    session = session_of(vit, [dynamic])
    gate = dynamic.gates["blocks.0"]
    nn.init.normal_(gate.networks["G1"].head.weight, std=5)  # type: ignore[index, union-attr, arg-type]
    nn.init.zeros_(gate.networks["G1"].head.bias)  # type: ignore[index, union-attr, arg-type]
    session.model.train()(torch.randn(8, *INPUT))
    drawn = gate.grouping.draw(8, gating_of(session.model).state.tick, torch.device("cpu"))  # type: ignore[union-attr]
    keep = gating_of(session.model).state.dynamic["blocks.0.attn"]  # type: ignore[union-attr]
    assert drawn.sizes_G.tolist() == [2, 2, 2, 2]
    for group in range(4):
        assert keep[drawn.ids_B == group].unique().numel() == 1


def test_batch_scope_decides_once_and_sample_scope_per_image(vit: nn.Module, images: torch.Tensor) -> None:
    session = session_of(vit, [make("usdc-dynamic", gate_network="G9")])
    gating = gating_of(session.model)
    assert gating is not None
    session.model.eval()(images)
    assert gating.state.dynamic["blocks.1.mlp"].shape == ()
    for gate in gating.all():
        gate.scope = "sample"
    session.model(images)
    assert gating.state.dynamic["blocks.1.mlp"].shape == (5,)


@pytest.mark.parametrize("scope", ["batch", "sample"])
@pytest.mark.parametrize("network", ["G2", "G5", "G8"])
def test_executed_macs_with_gate_networks(vit: nn.Module, images: torch.Tensor, scope: Any, network: str) -> None:
    session = session_of(vit, [make("usdc-dynamic", gate_network=network, init_logit=0.0)], scope=scope)
    model, gating = session.model.eval(), gating_of(session.model)
    assert gating is not None
    for parameter in gating.parameters():
        nn.init.normal_(parameter, std=0.5) if parameter.ndim > 1 else None
    counted = counted_macs(model, images)
    assert batch_macs(session.units, gating.state.dynamic, gating.count_macs(), 5) == counted
    assert counted != session.dense.macs * 5
    with torch.no_grad():
        skipping = model(images)
        set_mode(model, "masked")
        assert gap(model(images), skipping) < 1e-5


def test_gates_get_a_gradient_from_the_task_and_the_budget(vit: nn.Module, images: torch.Tensor) -> None:
    dynamic = make("usdc-dynamic", gate_network="G4")
    session = session_of(vit, [dynamic])
    session.begin_step(0, 10)
    output = session.model.train()(images)
    head = dynamic.gates["blocks.0"].networks["G4"].head.weight  # type: ignore[index, union-attr]
    (task,) = torch.autograd.grad(output.square().sum(), head, retain_graph=True)
    (budget,) = torch.autograd.grad(session.loss(output, images), head)
    assert task.abs().sum() > 0
    assert budget.abs().sum() > 0


def test_search_mixes_then_keeps_one_network(vit: nn.Module, images: torch.Tensor) -> None:
    dynamic = make("usdc-dynamic", space=["G1", "G9"], commit_at=0.5)
    session = session_of(vit, [dynamic])
    gate: Any = dynamic.gates["blocks.0"]
    mixture = 0.5 * gate.networks["G1"].macs + 0.5 * gate.networks["G9"].macs
    assert float(gate.macs().detach()) == pytest.approx(mixture)
    with torch.no_grad():
        gate.choice[1] = 3.0
    train(session, 10, images)
    assert gate.network_name == "G9"
    assert gate.macs() == gate.networks["G9"].macs
    assert len(gate.networks) == 1


def test_gates_survive_the_end_of_a_phase(vit: nn.Module, images: torch.Tensor) -> None:
    dynamic = make("usdc-dynamic", space=["G1", "G5"])
    session = session_of(vit, [make("usdc-static", lr=0.05), dynamic], target=0.6)
    train(session, 60, images)
    session.end_phase(lambda: iter([images]))
    records = session.plan.attached
    assert records
    assert set(records) == set(gating_of(session.model).gates)  # type: ignore[union-attr]
    session.begin_phase([dynamic])
    assert set(dynamic.gates) == {record.site for record in records.values()}


def test_calibration_meets_the_budget_and_constant_gates_go(vit: nn.Module) -> None:
    dynamic = make("usdc-dynamic", gate_network="G1", init_logit=0.0)
    session = session_of(vit, [dynamic], target=0.7, scope="sample")
    torch.manual_seed(3)
    for gate in dynamic.gates.values():
        nn.init.normal_(gate.networks["G1"].head.weight, std=0.5)  # type: ignore[index, union-attr, arg-type]
    batches = [torch.randn(16, *INPUT) for _ in range(8)]
    found = session.calibrate(lambda: iter(batches))
    assert found is not None
    assert abs(found.execution.macs / session.dense.macs - 0.7) < 0.005
    before = session.execution(lambda: iter(batches))
    session.settle(lambda: iter(batches))
    after = session.execution(lambda: iter(batches))
    constant = [name for name, rate in before.rates.items() if rate in (0.0, 1.0)]
    assert not set(constant) & set(after.rates)
    assert set(session.plan.drops) == {name for name, rate in before.rates.items() if rate == 0.0}
    assert after.macs <= before.macs


def test_a_gate_that_tells_images_apart_stays_though_large_batches_all_decide_alike(vit: nn.Module) -> None:
    """The mean of a large batch hardly moves; at other batch sizes the same gate decides."""
    dynamic = make("usdc-dynamic", gate_network="G1", init_logit=0.0)
    session = session_of(vit, [dynamic], target=0.7, scope="batch")
    torch.manual_seed(3)
    for number, gate in enumerate(dynamic.gates.values()):
        head = gate.networks["G1"].head  # type: ignore[index, union-attr]
        nn.init.normal_(head.weight, std=0.5)
        nn.init.constant_(head.bias, (0.1, -0.1)[number % 2])
        if number == 0:
            nn.init.zeros_(head.weight)  # on for every image
    batches = [torch.randn(64, *INPUT) for _ in range(3)]
    rates = session.execution(lambda: iter(batches)).rates
    assert set(rates.values()) <= {0.0, 1.0}, "large batches decide alike"
    session.settle(lambda: iter(batches))
    assert not session.plan.drops
    left = set(session.execution(lambda: iter(batches)).rates)
    assert left == {name for name in rates if not name.startswith("blocks.0.")}
    assert {gate.scope for gate in session.gating.all()} == {"batch"}  # type: ignore[union-attr]


def test_no_more_is_kept_than_the_static_part_aims_at(vit: nn.Module, images: torch.Tensor) -> None:
    """Without it what gates hardly run would be kept whole, as it costs the budget nothing."""
    for target, most in ((0.6, 0.6), (None, 0.9)):
        session = session_of(copy.deepcopy(vit), [make("usdc-static", target=target)], target=0.9)
        session.end_phase(lambda: iter([images]))
        share = cost(session.units).macs / session.dense.macs
        assert most - 0.05 < share <= most


def test_a_budget_below_reach_is_refused_at_once(vit: nn.Module) -> None:
    with pytest.raises(UsdcoreError, match=r"budget macs 0\.3 can't be reached: .* 0\.\d+ of the dense model is left"):
        session_of(vit, [make("usdc-static", heads=True, hidden=False, branches=False)], target=0.3)


def test_a_gate_record_of_nonsense_is_one_clean_message(vit: nn.Module) -> None:
    from usdcore.plans import Attach
    from usdcore.surgery import shrink

    config = {"columns": ["blocks.0.attn"], "width": -5, "network": {"use": "G1"}, "scope": "batch", "threshold": 0}
    record = Attach(site="blocks.0", plugin="usdc-dynamic", distribution="usdcore", version="0", config=config)
    with pytest.raises(UsdcoreError, match=r"the plan's gate at blocks\.0 can't be built: width: "):
        shrink(vit, Plan(records=(record,)), ONE)


def test_a_missing_plugin_names_its_distribution(vit: nn.Module) -> None:
    from usdcore.plans import Attach
    from usdcore.surgery import shrink

    record = Attach(site="blocks.0", plugin="magic", distribution="magic-prune", version="2.1", config={})
    with pytest.raises(
        UsdcoreError, match=r"strategy 'magic' of the package magic-prune 2\.1.*pip install magic-prune"
    ):
        shrink(vit, Plan(records=(record,)), ONE)


def test_gates_count_as_parameters(vit: nn.Module, images: torch.Tensor) -> None:
    session = Session(vit, ONE, Budget("params", 0.6, batch_size=4))
    session.begin_phase([make("usdc-static", lr=0.05), make("usdc-dynamic", gate_network="G9")])
    train(session, 100, images)
    session.end_phase(lambda: iter([images]))
    share = sum(p.numel() for p in session.model.parameters()) / session.dense.params
    assert 0.59 < share <= 0.6


def test_a_dynamic_search_is_judged_too(vit: nn.Module, images: torch.Tensor) -> None:
    session = session_of(vit, [make("usdc-dynamic", gate_network="G2")], target=0.7)
    train(session, 20, images)
    end = session.end_phase(lambda: iter([images]))
    assert end.searched == end.execution.macs / session.dense.macs


def test_a_gated_model_in_training_can_be_copied(vit: nn.Module, images: torch.Tensor) -> None:
    """Averaged weights copy the model in the middle of a search."""
    session = session_of(vit, [make("usdc-static"), make("usdc-dynamic", relaxation="gumbel")])
    train(session, 2, images)
    twin = copy.deepcopy(session.model)
    torch.manual_seed(0)
    first = session.model.eval()(images)
    assert torch.equal(twin.eval()(images), first)


def test_gates_of_a_strategy_that_the_last_phase_does_not_name_settle_too(vit: nn.Module, images: torch.Tensor) -> None:
    dynamic = make("usdc-dynamic", gate_network="G1")
    session = session_of(vit, [dynamic], target=0.6)
    session.end_phase(lambda: iter([images]))
    session.begin_phase([])
    for gate, threshold in zip(gating_of(session.model).all(), (1e9, -1e9, 1e9), strict=True):  # type: ignore[union-attr]
        gate.threshold = threshold
    session.settle(lambda: iter([images]))
    assert set(session.plan.drops) == {"blocks.0.attn", "blocks.0.mlp", "blocks.2.attn", "blocks.2.mlp"}
    assert not session.plan.attached
    assert session.model.eval()(images).shape == (5, 7)


def test_forward_and_cost_see_the_same_mixture(vit: nn.Module, images: torch.Tensor) -> None:
    dynamic = make("usdc-dynamic", relaxation="gumbel", space=["G1", "G9"])
    session = session_of(vit, [dynamic])
    session.model.train()(images)
    gate: Any = dynamic.gates["blocks.0"]
    assert float(gate.macs().detach()) == float(gate.macs().detach())


def test_information_in_bf16_is_a_number() -> None:
    from usdcore_usdc.relax import information

    assert information(torch.full((4, 2), 50.0)).isfinite().all()
    sure = torch.tensor([[9.0], [-9.0]])
    assert float(information(sure)) == pytest.approx(0.692, abs=0.005)
    assert float(information(torch.zeros(2, 1))) == pytest.approx(0.0, abs=1e-6)


def test_nothing_left_to_prune_is_a_clean_message(vit: nn.Module) -> None:
    vit.blocks = nn.Sequential()
    with pytest.raises(UsdcoreError, match="there is nothing left to prune"):
        session_of(vit, [make("usdc-static")])
