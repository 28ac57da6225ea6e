"""DynamicViT's parts: published MACs and parameters, the counts that meet a budget, its functions by hand."""

from __future__ import annotations

from typing import Any

import pytest
import timm
import torch
from torch import nn
from zoo import gap

from usdcore.gates import Gating
from usdcore.plans import Plan
from usdcore.strategy import Attachment, Budget
from usdcore.units import find_units
from usdcore_dynamicvit.counts import by_budget, by_ratio, cost_by_counts, find_stream
from usdcore_dynamicvit.gate import PlaceGate, Sizes
from usdcore_dynamicvit.losses import kl_loss, ratio_loss, token_loss
from usdcore_dynamicvit.predictor import Predictor, sampled


def site_of(name: str, target: float = 1.0, **kwargs: Any) -> Attachment:
    """A model of full size, without weights."""
    with torch.device("meta"):
        model = timm.create_model(name, **kwargs)
    units = find_units(model, torch.empty(1, 3, 224, 224, device="meta"))
    refuse: Any = None
    return Attachment(model, units, Budget("macs", target, 1), Plan(), Gating(), refuse, (3, 224, 224))


# --- what was published


@pytest.mark.parametrize(
    ("name", "kwargs", "published"),
    [
        ("deit_small_patch16_224", {"embed_dim": 256, "num_heads": 4}, 1.3),
        ("deit_small_patch16_224", {}, 2.9),
        ("deit_base_patch16_224", {}, 11.4),
    ],
)
def test_published_macs(name: str, kwargs: dict[str, Any], published: float) -> None:
    """All three have the digits that were printed: 1.37, 2.98 and 11.48, predictors included, cut off after one."""
    site = site_of(name, **kwargs)
    stream = find_stream(site, None)
    assert [span[0].name for span in stream.spans] == ["blocks.3", "blocks.6", "blocks.9"]
    assert (stream.prefix, stream.patches) == (1, 196)
    counts = by_ratio(stream.patches, 0.7, 3)
    assert counts == (137, 96, 67)
    macs = cost_by_counts(site, stream)(counts) / 1e9
    assert int(macs * 10) / 10 == published


def test_published_predictors() -> None:
    """Of DeiT-S: 241,250 parameters each, 0.724 M in all; 0.103 GMACs for 196, 137 and 96 tokens."""
    gates = [PlaceGate(["blocks.3"], None, Sizes(384, 1, read, 1), 0.7) for read in (196, 137, 96)]
    assert sum(p.numel() for gate in gates for p in gate.parameters()) == 3 * 241_250
    assert sum(float(gate.macs()) for gate in gates) / 1e9 == pytest.approx(0.1029, rel=1e-3)


def test_a_budget_gives_the_ratio_back() -> None:
    """Solved to the last token: what the published ratio costs is met by its counts, or as many tokens otherwise."""
    site = site_of("deit_small_patch16_224", embed_dim=192, num_heads=3)
    stream = find_stream(site, None)
    cost = cost_by_counts(site, stream)
    site.budget = Budget("macs", cost((137, 96, 67)) / site.dense_total, 1)
    counts = by_budget(site, stream)
    assert sum(abs(a - b) for a, b in zip(counts, (137, 96, 67), strict=True)) <= 2
    assert 0 <= site.budget.target - cost(counts) / site.dense_total < 0.002
    site.budget = Budget("macs", 1.1, 1)
    assert by_budget(site, stream) == (196, 196, 196)


# --- its functions


def test_the_predictor_averages_half_of_the_channels_over_kept_tokens() -> None:
    torch.manual_seed(0)
    predictor = Predictor(12).double().requires_grad_(False)
    for parameter in predictor.parameters():
        nn.init.normal_(parameter)
    x, kept = torch.randn(2, 6, 12).double(), torch.ones(2, 6).double()
    kept[0, 3:] = 0
    scores = predictor(x, kept)
    torch.testing.assert_close(scores.exp().sum(-1), torch.ones(2, 6).double())
    torch.testing.assert_close(scores[:1, :3], predictor(x[:1, :3]))
    assert gap(scores[:1, :3], predictor(x)[:1, :3]) > 1e-4  # other tokens kept, another mean
    entered = predictor.enter(x[:1])
    by_hand = torch.cat([entered[..., :6], entered[:, :3, 6:].mean(1, keepdim=True).expand(1, 6, 6)], -1)
    torch.testing.assert_close(scores[:1], predictor.score(by_hand).log_softmax(-1))


def test_what_was_dropped_stays_dropped_and_learns_nothing() -> None:
    torch.manual_seed(0)
    logits = torch.randn(4, 8, 2, requires_grad=True)
    earlier = (torch.rand(4, 8) < 0.5).float()
    keep = sampled(logits.log_softmax(-1), earlier, 1.0)
    assert set(keep.unique().tolist()) == {0.0, 1.0}
    assert bool((keep <= earlier).all())
    keep.sum().backward()
    assert logits.grad is not None
    assert torch.equal(logits.grad.abs().sum(-1) > 0, earlier > 0)


def test_losses_by_hand() -> None:
    kept = [torch.tensor([[1.0, 1, 1, 0], [1, 0, 0, 0]]), torch.tensor([[1.0, 0, 0, 0], [0, 0, 0, 0]])]
    expected = ((0.75 - 0.7) ** 2 + (0.25 - 0.7) ** 2 + (0.25 - 0.49) ** 2 + (0.0 - 0.49) ** 2) / 4
    assert float(ratio_loss(kept, [0.7, 0.49])) == pytest.approx(expected)
    student, teacher = torch.tensor([[0.0, 0.0], [1.0, 2.0]]), torch.tensor([[1.0, 0.0], [2.0, 3.0]])
    p = torch.softmax(teacher[0], 0)
    assert float(kl_loss(student, teacher)) == pytest.approx(float((p * (2 * p).log()).sum()) / 2)
    gaps = torch.tensor([[[1.0, 1.0], [2.0, 4.0]], [[3.0, 0.0], [5.0, 5.0]]])
    chosen = torch.tensor([[1.0, 1.0], [1.0, 0.0]])
    assert float(token_loss(gaps, torch.zeros_like(gaps), chosen)) == pytest.approx((1 + 10 + 4.5) / 3)
    assert float(token_loss(gaps, torch.zeros_like(gaps), torch.zeros(2, 2))) == 0.0
    assert kl_loss(student.bfloat16(), teacher.bfloat16()).dtype == torch.float32
