"""AdaViT over phases: what is saved, what goes on, what is gone, what it stands beside and what is refused."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch
from adapting import ONE, begun, executed, make, scattered, session_of, train
from counting import counted_macs
from torch import nn
from zoo import gap

import usdcore
from usdcore.errors import UsdcoreError
from usdcore.plans import Plan
from usdcore.recipe import load_recipe
from usdcore.runner import gating_of, set_mode
from usdcore.strategy import Budget
from usdcore.units import find_units
from usdcore_adavit.gate import PolicyGate, Tie


def test_a_saved_model_decides_alike_when_loaded(tmp_path: Path, images: torch.Tensor) -> None:
    strategy = make()
    session = begun([strategy])
    train(session, 5, images)
    scattered(session, strategy, images)
    session.end_phase(lambda: iter([images]))
    session.calibrate(lambda: iter([images]))
    usdcore.save(session.model.eval(), session.plan, tmp_path / "model.safetensors")
    twin = usdcore.load(tmp_path / "model.safetensors")
    with torch.no_grad():
        assert gap(twin.eval()(images), session.model(images)) < 1e-6
        twin.train()(images)  # in plain PyTorch it decides as in evaluation
    gates = [gate for gate in gating_of(twin).all() if isinstance(gate, PolicyGate)]  # type: ignore[union-attr]
    assert gates
    assert not any(gate.is_learning for gate in gates)


def test_gates_go_on_in_the_next_phase(images: torch.Tensor) -> None:
    strategy = make()
    session = begun([strategy])
    train(session, 5, images)
    scattered(session, strategy, images)
    before = {name: tensor.clone() for name, tensor in strategy.gates["blocks.1"].state_dict().items()}
    end = session.end_phase(lambda: iter([images]))
    assert any("follows from the budget" in note for note in end.notes)
    session.begin_phase([strategy])
    after = strategy.gates["blocks.1"].state_dict()
    assert all(torch.equal(before[name], tensor) for name, tensor in after.items())
    assert all(gate.is_learning for gate in strategy.policy_gates)
    train(session, 2, images)


def test_what_is_gone_is_decided_about_no_more(images: torch.Tensor) -> None:
    """A branch never on is dropped with its heads; a block of which nothing is left has no gate."""
    strategy = make()
    session = begun([strategy])
    with torch.no_grad():
        strategy.gates["blocks.1"].layers.bias.copy_(torch.tensor([-1e3, 1e3]))
        strategy.gates["blocks.2"].layers.bias.fill_(-1e3)
        session.model.eval()
        session.end_phase(lambda: iter([images]))
        session.settle(lambda: iter([images]))
    assert set(session.plan.drops) == {"blocks.1.attn", "blocks.2.attn", "blocks.2.mlp"}
    assert {site: gate.sites for site, gate in strategy.gates.items()} == {
        "blocks.0": ("blocks.0:tokens",),
        "blocks.1": ("blocks.1.mlp:head_columns", "blocks.1:tokens"),
    }
    assert counted_macs(session.model.eval(), images) == executed(session, images)


def test_a_model_in_training_can_be_copied(vit: nn.Module, images: torch.Tensor) -> None:
    session = session_of(vit, [make()])
    train(session, 2, images)
    twin = copy.deepcopy(session.model)
    with torch.no_grad():
        assert torch.equal(twin.eval()(images), session.model.eval()(images))


def test_it_follows_static_pruning(images: torch.Tensor) -> None:
    """Heads that an earlier phase removed are not decided about."""
    prune = make("prune", importance="l2", heads=True, hidden=True)
    session = begun([prune], target=0.7)
    session.end_phase(lambda: iter([images]))
    strategy = make()
    session.budget = Budget("macs", 0.5, batch_size=4, scope="sample")
    session.begin_phase([strategy])
    scattered(session, strategy, images)
    left = {group.sites[0]: group.count for gate in strategy.policy_gates for group in gate.policy.heads}
    assert left == {name: g.size for name, g in session.units.groups.items() if name in left}
    with torch.no_grad():
        skipping = session.model.eval()(images)
        set_mode(session.model, "masked")
        assert gap(session.model(images), skipping) < 1e-5


# --- what is refused


def test_a_budget_of_batches_is_refused(vit: nn.Module) -> None:
    with pytest.raises(UsdcoreError, match=r"adavit decides for each image, .* budget: \{scope: sample\}"):
        session_of(vit, [make()], scope="batch")


def test_heads_have_one_strategy(vit: nn.Module) -> None:
    with pytest.raises(UsdcoreError, match=r"both act on blocks\.1\.attn:heads"):
        session_of(vit, [make("usdc-static"), make()])


def test_usdc_static_may_remove_the_rest(vit: nn.Module, images: torch.Tensor) -> None:
    session = session_of(vit, [make("usdc-static", heads=False, lr=0.05), make()])
    train(session, 5, images)
    session.end_phase(lambda: iter([images]))


def test_tokens_have_one_strategy(tmp_path: Path) -> None:
    with pytest.raises(UsdcoreError, match="both act on the tokens of the model"):
        load_recipe(written(tmp_path, "adavit}, {use: dynamicvit"))


def test_columns_that_are_not_there_are_one_clean_message(vit: nn.Module) -> None:
    units = find_units(vit, ONE)
    tie = Tie(site="blocks.1.mlp:head_columns", places=(0, 1, 2, 3), each=12)
    assert tie.group(vit, units).size == 4
    for wrong in ({"places": (0, 1, 2, 9)}, {"site": "blocks.1.attn:head_columns"}, {"site": "x:head_columns"}):
        with pytest.raises(UsdcoreError, match="has no linear layers that read 12 columns for each head"):
            tie.model_copy(update=wrong).group(vit, units)


def test_a_record_of_nonsense_is_one_clean_message(vit: nn.Module) -> None:
    from usdcore.plans import Attach
    from usdcore.surgery import shrink

    record = Attach(site="blocks.0", plugin="adavit", distribution="usdcore", version="0", config={"width": -5})
    with pytest.raises(UsdcoreError, match=r"the plan's gate at blocks\.0 can't be built: "):
        shrink(vit, Plan(records=(record,)), ONE)


@pytest.mark.parametrize(
    ("options", "epochs", "message"),
    [
        ("", 0, "learns what each image uses, and the phases that name it have 0 epochs"),
        (", heads: null, layers: false, tokens: false", 1, "nothing to decide about"),
        (", target: 1.5", 1, "1.5 is too large; use a number at most 1"),
    ],
)
def test_mistakes_in_a_recipe(tmp_path: Path, options: str, epochs: int, message: str) -> None:
    with pytest.raises(UsdcoreError, match=message):
        load_recipe(written(tmp_path, f"adavit{options}", epochs))


def written(folder: Path, strategy: str, epochs: int = 1) -> Path:
    """A recipe with one phase that names a strategy with options."""
    recipe = folder / "r.yaml"
    recipe.write_text(
        "name: r\nmodel: {name: vit_tiny_patch16_224, num_classes: 10}\n"
        "data: {source: digits, input_size: 8, batch_size: 8}\nbudget: {macs: 0.5, batch_size: 8, scope: sample}\n"
        "seed: 0\ntrain: {opt: adamw, lr: 1.0e-3, weight_decay: 0.05, sched: none, warmup_epochs: 0}\n"
        f"phases:\n  - {{name: a, epochs: {epochs}, strategies: [{{use: {strategy}}}]}}\n"
    )
    return recipe
