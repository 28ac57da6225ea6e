"""UVC from outside: its norms against brute force, the public code's numbers, a search that meets its budget."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any

import pytest
import timm
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from zoo import INPUT

from usdcore.costs import cost
from usdcore.errors import BudgetMissed, UsdcoreError
from usdcore.hooks import registry
from usdcore.runner import gating_of
from usdcore.session import PhaseEnd, Session
from usdcore.strategy import Budget
from usdcore.units import find_units
from usdcore_uvc.config import UvcConfig
from usdcore_uvc.layout import lay_out
from usdcore_uvc.norms import Least, prox_factor, scores
from usdcore_uvc.public import public_cost
from usdcore_uvc.solver import Solver
from usdcore_uvc.strategy import Uvc

ROWS = st.lists(st.lists(st.floats(0, 10, width=32), min_size=1, max_size=6), min_size=1, max_size=4)


def uvc(**options: Any) -> Uvc:
    config = registry().config("strategy", "uvc").model_validate({"use": "uvc", **options})
    made: Uvc = registry().load("strategy", "uvc")(config)
    return made


def batches() -> Iterator[Tensor]:
    generator = torch.Generator().manual_seed(3)
    for _ in range(2):
        yield torch.randn(4, *INPUT, generator=generator)


def padded(rows: list[list[float]]) -> Tensor:
    table = torch.full((len(rows), max(map(len, rows))), torch.inf)
    for row, values in enumerate(rows):
        table[row, : len(values)] = torch.tensor(values)
    return table


def train(session: Session, steps: int, lr: float = 1e-3, stop: int | None = None, start: int = 0) -> None:
    """A plain loop on random images with a fixed task."""
    session.model.train()
    weights = [p for name, p in session.model.named_parameters() if not name.startswith("usdcore.")]
    optimizer = torch.optim.SGD(weights, lr=lr)
    own = [{"params": g.parameters, "lr": g.lr or lr} for g in session.parameter_groups if g.parameters]
    gates = torch.optim.SGD(own) if own else None
    for step in range(start, steps if stop is None else stop):
        torch.manual_seed(step)
        images, target = torch.randn(4, *INPUT), torch.randint(5, (4,))
        session.begin_step(step, steps, images=images, lr=lr)
        output = session.model(images)
        logits = output[0] if isinstance(output, tuple) else output
        loss = nn.functional.cross_entropy(logits, target) + session.loss(output, target)
        optimizer.zero_grad()
        if gates:
            gates.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        session.after_backward()
        optimizer.step()
        if gates:
            gates.step()
        session.after_step()


def searched(model: nn.Module, target: float, steps: int = 150, **options: Any) -> tuple[Session, PhaseEnd, Uvc]:
    strategy = uvc(**options)
    session = Session(model, torch.zeros(1, *INPUT), Budget("macs", target, batch_size=4))
    session.begin_phase([strategy])
    train(session, steps)
    return session, session.end_phase(batches), strategy


@given(ROWS, st.data())
@settings(max_examples=60, deadline=None)
def test_least_sums_prices_and_choices_are_those_of_sorting_each_row(
    rows: list[list[float]], data: st.DataObject
) -> None:
    counts = [data.draw(st.integers(0, len(row) - 1)) for row in rows]
    least = Least(padded(rows))
    count = torch.tensor(counts, dtype=torch.float32)
    for i, (row, k) in enumerate(zip(rows, counts, strict=True)):
        ordered = sorted(row)
        assert float(least.total(count)[i]) == pytest.approx(sum(ordered[:k]), abs=1e-4)
        assert float(least.price(count)[i]) == pytest.approx(ordered[k], abs=1e-6)
        chosen = least.chosen(count)[i]
        assert int(chosen.sum()) == k
        assert sorted(padded(rows)[i][chosen].tolist()) == pytest.approx(ordered[:k])


def test_a_price_beyond_the_last_entry_is_the_largest() -> None:
    least = Least(padded([[3.0, 1.0], [5.0]]))
    assert least.price(torch.tensor([2.0, 1.0])).tolist() == [3.0, 5.0]


def test_the_proximal_step_is_that_of_the_squared_norm() -> None:
    weight, column = 0.7, torch.tensor([1.0, -2.0])
    factor = prox_factor(torch.tensor([[True, False]]), torch.tensor([weight]))
    near = column * factor[0, 0]
    # argmin over v of weight * |v|^2 + |v - column|^2 / 2
    assert torch.allclose(2 * weight * near + near - column, torch.zeros(2), atol=1e-6)
    assert float(factor[0, 1]) == 1.0


@given(st.lists(st.floats(0, 5, width=32), min_size=1, max_size=4), st.floats(0.25, 3, width=32))
@settings(max_examples=60, deadline=None)
def test_scores_remove_just_what_multiplied_counts_remove(counts: list[float], multiplier: float) -> None:
    rank = torch.arange(6).expand(len(counts), 6)
    value = torch.tensor(counts)
    gone = scores(rank, value) < multiplier - 1
    expected = torch.stack([rank[0] < multiplier * count for count in value])
    expected &= value[:, None] > 0
    near = (rank - multiplier * value[:, None]).abs() < 1e-4  # where rounding decides
    assert bool(((gone == expected) | near).all())


@pytest.mark.parametrize(
    ("name", "dense", "share"),
    [
        ("deit_tiny_patch16_224", 2506.98, 0.0814119413),
        ("deit_small_patch16_224", 9197.00, 0.0822858401),
        ("deit_base_patch16_224", 35126.12, 0.0827848075),
    ],
)
def test_the_public_codes_numbers(name: str, dense: float, share: float) -> None:
    model = timm.create_model(name)
    units = find_units(model, torch.zeros(1, 3, 224, 224, device="meta"))
    layout = lay_out(model, units, frozenset({"heads", "dims", "hidden"}))
    found = public_cost(model, units, layout, [block.name for block in units.blocks])
    assert found.dense / 1e6 == pytest.approx(dense, abs=0.005)
    ones = torch.ones(12, dtype=torch.float64)
    for skipped in (0, 2, 11):
        execute = ones.clone()
        execute[:skipped] = 0
        assert float(found.ratio(ones, ones, ones, execute)) == pytest.approx(1 - skipped * share, abs=1e-9)


def test_the_public_codes_slopes_of_a_small_deit() -> None:
    model = timm.create_model("deit_small_patch16_224")
    units = find_units(model, torch.zeros(1, 3, 224, 224, device="meta"))
    layout = lay_out(model, units, frozenset({"heads", "dims", "hidden"}))
    cost_ = public_cost(model, units, layout, [])
    heads, hidden = (torch.ones(12, dtype=torch.float64, requires_grad=True) for _ in range(2))
    rho = torch.ones(12, dtype=torch.float64, requires_grad=True)
    ratio = cost_.ratio(heads, rho, hidden, torch.zeros(0, dtype=torch.float64))
    by_heads, by_rho, by_hidden = torch.autograd.grad(ratio, [heads, rho, hidden])
    assert float((by_heads + by_rho)[0]) / 6 == pytest.approx(0.005292, abs=5e-7)
    assert float(by_hidden[0]) / 1536 == pytest.approx(3.290e-5, abs=5e-9)
    assert float(by_rho[0]) / 384 == pytest.approx(2.49e-5, abs=5e-8)


def test_norms_are_those_of_the_projections_columns(model: nn.Module) -> None:
    units = find_units(model, torch.zeros(1, *INPUT))
    layout = lay_out(model, units, frozenset({"heads", "dims", "hidden"}))
    assert list(layout.tables) == ["heads", "dims", "hidden"]
    heads = layout.heads.norms()
    dims = layout.dims.norms()
    attention = units.attention[0]
    group = next(g for g in attention.groups if g.kind == "heads")
    (mask,) = group.masks
    weight = model.get_submodule(mask.module).get_parameter("weight").detach()
    squares = weight.square().sum(0).view(attention.num_heads, -1)
    assert torch.allclose(heads[0], squares.sum(1), rtol=1e-5)
    assert torch.allclose(dims[: attention.num_heads], squares, rtol=1e-5)


@pytest.mark.parametrize("target", [0.4, 0.7])
def test_the_search_meets_the_budget_by_itself_and_prunes_within_blocks(vit: nn.Module, target: float) -> None:
    session, end, _ = searched(vit, target)
    assert end.searched is not None
    assert abs(end.searched - target) <= 0.05
    assert cost(session.units).macs / session.dense.macs == pytest.approx(target, abs=0.005)
    assert {record.group.rpartition(":")[2] for record in session.plan.records if record.record == "keep"} >= {"hidden"}
    assert session.gating is None
    assert session.model(torch.zeros(2, *INPUT)).shape[0] == 2


def test_blocks_do_not_save_all_there_is_to_save(vit: nn.Module) -> None:
    """However hard the gates are pushed, `inside` of the saving comes from within blocks."""
    session, end, _ = searched(vit, 0.4, gate_weight=1000.0, gate_lr=1.0, inside=0.3)
    blocks = find_units(vit, torch.zeros(1, *INPUT)).blocks
    dropped = [record.branch for record in session.plan.records if record.record == "drop"]
    assert len(dropped) == 2  # one block of three, which saves 0.31; two would save more than 0.7 * 0.6
    assert {name.rpartition(".")[0] for name in dropped} < {block.name for block in blocks}
    assert end.searched is not None
    assert abs(end.searched - 0.4) <= 0.05


@pytest.mark.parametrize("gate_weight", [0.0, 3.0, 1000.0])
def test_skipping_alone_meets_a_budget_of_whole_blocks(vit: nn.Module, gate_weight: float) -> None:
    alone = {"heads": False, "dims": False, "hidden": False}
    session, end, _ = searched(vit, 0.7, gate_lr=1.0, gate_weight=gate_weight, **alone)
    assert end.projection is None
    assert end.searched == cost(session.units).macs / session.dense.macs
    assert abs(end.searched - 0.7) <= 0.05


def test_a_budget_that_no_number_of_blocks_meets_is_refused(vit: nn.Module) -> None:
    with pytest.raises(UsdcoreError, match=r"uvc: 0\.55 of the dense macs can't be reached: .* and 0\.6967 are left"):
        searched(vit, 0.55, heads=False, dims=False, hidden=False)


def test_a_search_that_is_too_short_says_why(vit: nn.Module) -> None:
    with pytest.raises(
        BudgetMissed, match=r"came to 0\.[6-9].* of the dense model by itself and 0\.4 was asked for.*at their"
    ):
        searched(vit, 0.4, steps=2, skip="none")


def test_a_target_below_one_of_each_is_refused_before_training(vit: nn.Module) -> None:
    session = Session(vit, torch.zeros(1, *INPUT), Budget("macs", 0.05, batch_size=4))
    text = r"uvc: 0\.05 of the dense macs can't be reached: one head, one dim and one neuron in every layer cost 0\.14"
    with pytest.raises(UsdcoreError, match=text):
        session.begin_phase([uvc(skip="none")])


def test_the_loop_must_say_its_learning_rate(vit: nn.Module) -> None:
    session = Session(vit, torch.zeros(1, *INPUT), Budget("macs", 0.5, batch_size=4))
    session.begin_phase([uvc()])
    images, target = torch.randn(2, *INPUT), torch.zeros(2, dtype=torch.long)
    session.begin_step(0, 10)
    output = session.model(images)
    (output.sum() + session.loss(output, target)).backward()  # type: ignore[no-untyped-call]
    session.after_backward()
    with pytest.raises(UsdcoreError, match=r"begin_step\(\.\.\., lr=\.\.\.\)"):
        session.after_step()


@pytest.mark.parametrize("options", [{}, {"faithful": True}, {"skip": "branch", "hard": False}])
def test_state_goes_on_where_it_was(vit: nn.Module, options: dict[str, Any]) -> None:

    def begun() -> tuple[Session, Uvc]:
        strategy = uvc(warmup=0.1, **options)
        session = Session(copy.deepcopy(vit), torch.zeros(1, *INPUT), Budget("macs", 0.5, batch_size=4))
        torch.manual_seed(0)
        session.begin_phase([strategy])
        return session, strategy

    whole, strategy = begun()
    train(whole, 40)
    broken, first = begun()
    train(broken, 40, stop=23)
    resumed, second = begun()
    resumed.model.load_state_dict(broken.model.state_dict())
    second.load_state_dict(first.state_dict())
    train(resumed, 40, start=23)
    for (name, a), b in zip(whole.model.state_dict().items(), resumed.model.state_dict().values(), strict=True):
        assert torch.equal(a, b), name
    for a, b in zip(strategy.decide().scores.values(), second.decide().scores.values(), strict=True):
        assert torch.equal(a, b)


def test_evaluation_masks_what_training_only_counts(vit: nn.Module) -> None:
    strategy = uvc(skip="none", warmup=0.0)
    session = Session(vit, torch.zeros(1, *INPUT), Budget("macs", 0.4, batch_size=4))
    session.begin_phase([strategy])
    assert isinstance(strategy.solver, Solver)
    for counts in strategy.solver.counts.kinds.values():
        counts.set(counts.table.sizes / 2)
    session.begin_step(5, 10, lr=1e-3)
    images = torch.randn(2, *INPUT)
    dense = find_units(vit, torch.zeros(1, *INPUT))
    assert dense.macs == session.dense.macs
    gating = gating_of(session.model)
    assert gating is not None
    session.model.train()
    trained = session.model(images)
    spent = session._spent(gating)[0]
    gating.gates["uvc@model"].neutral()  # type: ignore[operator]
    assert torch.allclose(trained, session.model(images), atol=1e-6)
    gating.gates["uvc@model"].neutral(False)  # type: ignore[operator]
    masked = session.model.eval()(images)
    assert float(spent.detach()) < 0.8
    assert not torch.allclose(masked, trained, atol=1e-3)


def test_one_config_is_enough_to_have_nothing_to_do() -> None:
    with pytest.raises(ValueError, match="nothing to compress"):
        UvcConfig(use="uvc", heads=False, dims=False, hidden=False, skip="none")


def test_uvc_prunes_while_usdc_skips_under_one_budget(vit: nn.Module) -> None:
    dynamic = registry().load("strategy", "usdc-dynamic")(
        registry().config("strategy", "usdc-dynamic").model_validate({"use": "usdc-dynamic", "gate_network": "G1"})
    )
    pruning = uvc(skip="none", target=0.7)
    session = Session(vit, torch.zeros(1, *INPUT), Budget("macs", 0.5, batch_size=4))
    session.begin_phase([pruning, dynamic])
    train(session, 120)
    session.end_phase(batches)
    assert cost(session.units).macs / session.dense.macs < 0.8
    assert session.gating is not None
