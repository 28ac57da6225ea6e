"""`prune` with `width: true`: magnitude over all readers and writers, exact budgets, and what can't be."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from counting import counted_macs
from torch import nn
from widths import FAMILIES, made
from zoo import INPUT

import usdcore
from usdcore.engine import pipeline
from usdcore.errors import UsdcoreError
from usdcore.hooks import registry
from usdcore.session import Session
from usdcore.strategy import Budget, Strategy
from usdcore.units import find_units

ONE = torch.zeros(1, *INPUT)
ONLY = {"heads": False, "hidden": False, "width": True}


def make(name: str = "prune", **options: Any) -> Any:
    config = registry().config("strategy", name).model_validate({"use": name, **options})
    return registry().load("strategy", name)(config)


def begun(
    model: nn.Module, *strategies: Strategy, target: float = 0.5, metric: Any = "macs", round_to: int = 1
) -> Session:
    session = Session(model, ONE, Budget(metric, target, batch_size=4, round_to=round_to))
    session.begin_phase(strategies)
    return session


def ended(session: Session) -> dict[str, int]:
    """The sizes of the groups that are left, the stream's with them."""
    session.end_phase(lambda: iter([torch.randn(4, *INPUT)]))
    groups = session.units.groups | session.units.widths.groups
    return {name: group.size for name, group in groups.items()}


def share(session: Session, dense: int) -> float:
    return counted_macs(session.model, torch.randn(1, *INPUT)) / dense


@pytest.mark.parametrize(("importance", "order"), [("l1", 1), ("l2", 2)])
def test_magnitude_is_the_norm_of_all_that_reads_and_writes_a_channel(
    vit: nn.Module, importance: str, order: int
) -> None:
    prune = make(importance=importance, **ONLY)
    begun(vit, prune)
    slices = []
    tensors: dict[str, torch.Tensor] = dict(vit.named_parameters())
    for member in find_units(vit, ONE).widths.groups["width"].members:
        slices.append(tensors[member.tensor].select(member.axis, 3))
    names = {member.tensor for member in find_units(vit, ONE).widths.groups["width"].members}
    assert {"cls_token", "pos_embed", "head.weight", "blocks.2.mlp.fc1.weight", "norm.bias"} < names
    flat = torch.cat([t.detach().flatten() for t in slices])
    torch.testing.assert_close(prune.importance("width")[3], flat.norm(order))


@pytest.mark.parametrize("scope", ["global", "local"])
@pytest.mark.parametrize("target", [0.7, 0.35])
@pytest.mark.parametrize("metric", ["macs", "params"])
def test_the_budget_is_met_to_the_last_neuron(vit: nn.Module, scope: str, target: float, metric: Any) -> None:
    dense = counted_macs(vit, ONE) if metric == "macs" else sum(p.numel() for p in vit.parameters())
    session = begun(vit, make(width=True, scope=scope), target=target, metric=metric)
    sizes = ended(session)
    spent = counted_macs(session.model, ONE) if metric == "macs" else sum(p.numel() for p in session.model.parameters())
    neuron = max(
        group.macs_per_entry if metric == "macs" else group.params_per_entry
        for group in session.units.groups.values()
        if group.kind == "hidden"
    )
    assert target - 1.01 * neuron / dense <= spent / dense <= target
    assert sizes["width"] < 48
    assert session.model(torch.randn(2, *INPUT)).shape == (2, 7)


def test_a_channel_comes_back_only_if_it_fits(vit: nn.Module) -> None:
    """The stream alone: the largest width under the budget."""
    dense = counted_macs(vit, ONE)
    session = begun(vit, make(**ONLY), target=0.6)
    width = ended(session)["width"]
    one = find_units(vit, ONE).widths.macs["model", ""]
    assert one.at({"width": width}) <= 0.6 * dense < one.at({"width": width + 1})
    assert share(session, dense) == one.at({"width": width}) / dense


def test_a_stated_share_and_rounding(vit: nn.Module) -> None:
    session = begun(vit, make(width=True, ratios={"width": 0.25}), target=0.5, round_to=8)
    sizes = ended(session)
    assert sizes["width"] == 40  # a quarter less is 36
    assert sizes["blocks.0.mlp:hidden"] % 8 == 0
    session = begun(vit, make(**ONLY), target=0.5, round_to=8)
    assert ended(session)["width"] % 8 == 0


def test_shares_that_leave_too_little_are_refused(vit: nn.Module) -> None:
    with pytest.raises(UsdcoreError, match=r"prune\.ratios alone leave 0\.2"):
        begun(vit, make(**ONLY, ratios={"width": 0.75}), target=0.8)


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family(family: str) -> None:
    model = made(family).requires_grad_(True)
    dense = counted_macs(model.requires_grad_(False), ONE)
    session = begun(model, make(width=True), target=0.5)
    ended(session)
    assert 0.49 < share(session, dense) <= 0.5


def test_a_second_phase_goes_on(vit: nn.Module) -> None:
    dense, prune = counted_macs(vit, ONE), make(width=True)
    session = begun(vit, prune, target=0.7)
    ended(session)
    session.budget = type(session.budget)("macs", 0.4, batch_size=4)
    session.begin_phase([prune])
    ended(session)
    assert 0.395 < share(session, dense) <= 0.4
    again = find_units(vit, ONE)
    kept = session.plan.keep("width")
    assert kept is not None
    assert len(kept) == session.units.widths.groups["width"].size < again.widths.groups["width"].size


def test_out_of_reach_is_said_at_once(vit: nn.Module) -> None:
    with pytest.raises(UsdcoreError, match="can't be reached: with everything off"):
        begun(vit, make(**ONLY), target=0.001)


def test_a_model_without_a_stream_to_cut(vit: nn.Module) -> None:
    vit.reset_classifier(0)
    with pytest.raises(UsdcoreError, match="no residual stream of this model can be made narrower: width: the model's"):
        begun(vit, make(width=True))


def test_not_while_gates_read_the_stream(vit: nn.Module) -> None:
    dynamic = make("usdc-dynamic", gate_network="search", space=["G1"])
    with pytest.raises(UsdcoreError, match=r"width can't be cut while gates read the stream \(at blocks\.0"):
        begun(vit, dynamic, make(width=True))


RECIPE = """
name: narrowed
model: {name: vit_tiny_patch16_224, num_classes: 10, kwargs: {patch_size: 4, embed_dim: 32, depth: 2, num_heads: 2}}
data: {source: digits, input_size: 8, batch_size: 256}
budget: {macs: 0.6, batch_size: 32}
seed: 3
threads: 1
train: {lr: 2.0e-3}
phases:
  - {name: prune, epochs: 1, train: {ema: 0.9}, strategies: [{use: prune, width: true}]}
  - {name: tune, epochs: 1}
evaluate: {batch_sizes: [32], calibration_images: 64}
latency: {batch_sizes: [1], repeats: 1}
"""


def test_a_whole_run(tmp_path: Path) -> None:
    """Training goes on after the cut, averaged weights and the optimizer's moments with it; the file loads."""
    (tmp_path / "r.yaml").write_text(RECIPE)
    result = pipeline.run(tmp_path / "r.yaml", tmp_path / "out")
    assert 0.595 < result["compressed"]["macs"] / result["dense"]["macs"] <= 0.6
    small: Any = usdcore.load(tmp_path / "out" / "model.safetensors")
    assert small.embed_dim == small.norm.normalized_shape[0] == len(small.cls_token.flatten()) < 32
    assert "channels of the residual stream" in (tmp_path / "out" / "report.md").read_text()
