"""Cutting the residual stream: the law that holds in place of masking, exact costs, and the interface that stays."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from counting import counted_macs
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from test_surgery import ONE, PlanGate, random_plan
from torch import nn
from widths import FAMILIES, TWO, made, with_kept_norms
from zoo import gap, randomise

import usdcore
from usdcore.artifact import create, save
from usdcore.costs import Tree, cost
from usdcore.errors import UsdcoreError
from usdcore.gates import Gating
from usdcore.nesting import continued
from usdcore.plans import Base, Keep, Plan
from usdcore.runner import attach
from usdcore.shares import removed
from usdcore.surgery import shrink
from usdcore.units import find_units

TOLERANCE = 1e-4
KEPT = (0, 1, 3, 4, 8, 9, 11, 14, 15, 19, 20, 21, 27, 30, 31, 32, 36, 40, 41, 46, 47)
OTHERS = tuple(i for i in range(48) if i not in KEPT)[: len(KEPT)]
NARROW = Plan(records=(Keep(group="width", indices=KEPT),))


@pytest.fixture(params=list(FAMILIES))
def family(request: pytest.FixtureRequest) -> nn.Module:
    return made(request.param)


def logits(model: nn.Module, images: torch.Tensor) -> torch.Tensor:
    with torch.no_grad():
        return model(images)


def test_shrunk_is_the_model_whose_norms_see_only_what_is_kept(family: nn.Module, images: torch.Tensor) -> None:
    """The law, with two controls: other channels, and zeros in the place of channels under the norms as they were."""
    group = find_units(family, ONE).widths.groups["width"]
    small = logits(shrink(family, NARROW, ONE), images)
    assert gap(small, logits(with_kept_norms(family, group.norms, KEPT), images)) < TOLERANCE
    assert gap(small, logits(with_kept_norms(family, group.norms, OTHERS), images)) > 100 * TOLERANCE


def test_the_law_in_double(family: nn.Module, images: torch.Tensor) -> None:
    group = find_units(family, ONE).widths.groups["width"]
    model, images = family.double(), images.double()
    small = logits(shrink(model, NARROW, ONE.double()), images)
    assert gap(small, logits(with_kept_norms(model, group.norms, KEPT), images)) < 1e-11


def test_zeros_in_the_stream_are_something_else(images: torch.Tensor) -> None:
    """Why there is no mask point."""
    model = made("vit")
    zeros = made("vit")
    tensors = dict(zeros.named_parameters())
    for member in find_units(model, ONE).widths.groups["width"].members:
        gone = torch.from_numpy(np.flatnonzero(~np.isin(member.entry_of, KEPT)))
        tensors[member.tensor].index_fill_(member.axis, gone, 0.0)
    assert gap(logits(shrink(model, NARROW, ONE), images), logits(zeros, images)) > 100 * TOLERANCE


def combined(model: nn.Module, seed: int) -> Plan:
    """Everything at once: branches, heads, dims, neurons, and the stream."""
    rng = np.random.default_rng(seed)
    kept = np.flatnonzero(rng.random(48) < rng.uniform(0.2, 1.0))
    width = Keep(group="width", indices=tuple(int(i) for i in kept) or (5,))
    return Plan(records=(*random_plan(model, seed).records, width))


@pytest.mark.parametrize("seed", [0, 1])
def test_combined_plans_cost_what_is_predicted(family: nn.Module, images: torch.Tensor, seed: int) -> None:
    plan = combined(family, seed)
    small, predicted = shrink(family, plan, ONE), cost(find_units(family, ONE), plan)
    assert predicted.macs == counted_macs(small, images[:1])
    assert predicted.params == sum(p.numel() for p in small.parameters())
    assert predicted == cost(find_units(small, ONE))


@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(seed=st.integers(0, 2**32 - 1))
def test_prediction_equals_the_counter(vit: nn.Module, images: torch.Tensor, seed: int) -> None:
    plan = combined(vit, seed)
    small, predicted = shrink(vit, plan, ONE), cost(find_units(vit, ONE), plan)
    assert predicted.macs * len(images) == counted_macs(small, images)
    assert predicted.params == sum(p.numel() for p in small.parameters())


def test_rates_count_at_the_narrower_width(vit: nn.Module) -> None:
    tree, rates = Tree(find_units(vit, ONE)), {"blocks.1.attn": 0.25}
    small = Tree(find_units(shrink(vit, NARROW, ONE), ONE))
    assert tree.executed(rates, {"width": len(KEPT)}) == small.executed(rates)


def test_the_law_holds_beside_other_cuts(vit: nn.Module, images: torch.Tensor) -> None:
    """First the stream, then the rest, or all at once: the same model."""
    plan = Plan(records=(*random_plan(vit, 3).records, *NARROW.records))
    first = shrink(vit, NARROW, ONE)
    both = shrink(first, Plan(records=plan.records[:-1]), ONE)
    assert torch.equal(logits(shrink(vit, plan, ONE), images), logits(both, images))


def test_plans_compose(vit: nn.Module, images: torch.Tensor) -> None:
    once = shrink(vit, combined(vit, 7), ONE)
    left = find_units(once, ONE).widths.groups["width"].size
    more = Plan(records=(*random_plan(once, 8).records, Keep(group="width", indices=tuple(range(1, left, 2)))))
    both = continued(combined(vit, 7), more.records, find_units(once, ONE))
    assert torch.equal(logits(shrink(once, more, ONE), images), logits(shrink(vit, both, ONE), images))


def test_attributes_and_layers_tell_the_new_width(family: nn.Module) -> None:
    small = shrink(family, NARROW, ONE)
    assert small.num_features == len(KEPT)
    assert {norm.normalized_shape for norm in small.modules() if isinstance(norm, nn.LayerNorm)} >= {(len(KEPT),)}
    for module in small.modules():
        if isinstance(module, nn.Linear):
            assert module.weight.shape == (module.out_features, module.in_features)
        if isinstance(module, nn.Conv2d):
            assert module.weight.shape[:2] == (module.out_channels, module.in_channels // module.groups)


def test_the_interface_stays(family: nn.Module, images: torch.Tensor) -> None:
    small = shrink(family, NARROW, ONE)
    features = small.forward_features(images)
    assert features.shape[-1] == len(KEPT)
    assert torch.equal(small.forward_head(features), small(images))
    small.reset_classifier(10)
    assert small(images).shape == (len(images), 10)


def test_a_distilled_model_has_both_its_heads(images: torch.Tensor) -> None:
    small = shrink(made("distilled"), NARROW, ONE)
    small.set_distilled_training()
    outputs = small.train()(images)
    assert [tuple(out.shape) for out in outputs] == [(5, 7), (5, 7)]
    small.reset_classifier(10)
    assert [tuple(out.shape) for out in small(images)] == [(5, 10), (5, 10)]


def test_it_trains_and_names_stay(vit: nn.Module, images: torch.Tensor) -> None:
    small = shrink(vit, combined(vit, 2), ONE).train()
    assert set(small.state_dict()) <= set(vit.state_dict())
    small(images).sum().backward()
    assert all(p.grad is not None for p in small.parameters())
    assert vit.embed_dim == 48
    assert vit.feature_info[0]["num_chs"] == 48


def test_export(images: torch.Tensor) -> None:
    small = shrink(made("vit"), NARROW, ONE)
    exported = torch.export.export(small, (images,), dynamic_shapes=({0: torch.export.Dim("batch")},)).module()
    assert gap(exported(images[:3]), logits(small, images[:3])) < 1e-6


def test_round_trip_in_a_new_process(images: torch.Tensor, tmp_path: Path) -> None:
    kwargs = {key: value for key, value in TWO.items() if key != "num_classes"}
    base = Base(name="beit_base_patch16_224", kwargs=kwargs, num_classes=7, input_shape=(3, 32, 32))
    model = randomise(create(base)).eval()
    plan = Plan(base=base, records=combined(model, 4).records)
    small = shrink(model, plan)
    save(small, plan, tmp_path / "m.safetensors")
    torch.save({"images": images, "logits": logits(small, images)}, tmp_path / "seen.pt")
    code = (
        "import torch, usdcore; torch.set_grad_enabled(False); seen = torch.load('seen.pt', weights_only=True); "
        "model = usdcore.load('m.safetensors'); "
        "assert torch.equal(model(seen['images']), seen['logits']); model.reset_classifier(3); "
        "assert model(seen['images']).shape == (5, 3)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=tmp_path)
    assert usdcore.load(tmp_path / "m.safetensors").embed_dim == small.embed_dim


def test_what_it_saves_is_told(vit: nn.Module) -> None:
    units, plan = find_units(vit, ONE), Plan(records=(*random_plan(vit, 1).records, *NARROW.records))
    found = removed(units, plan)
    assert sum(found.values()) == pytest.approx(1 - cost(units, plan).macs / units.macs)
    assert found["width"] > 0


def test_a_gate_is_refused_with_the_reason(vit: nn.Module) -> None:
    gating = Gating()
    gating.add("plan", _Gate())
    with pytest.raises(
        UsdcoreError, match=r"width can't be gated: blocks\.0\.norm1 normalises over all of its channels"
    ):
        attach(vit, find_units(vit, ONE), gating)


class _Gate(PlanGate):
    def __init__(self) -> None:
        nn.Module.__init__(self)
        self.sites = ("width",)


@pytest.mark.parametrize(
    ("record", "message"),
    [
        (
            Keep(group="blocks.0:width", indices=(0,)),
            "which this model does not have: did you mean 'width'|valid: width",
        ),
        (Keep(group="width", indices=(0, 48)), "width: index 48 is out of range, the group has 48 entries"),
    ],
)
def test_refusals(vit: nn.Module, record: Keep, message: str) -> None:
    with pytest.raises(UsdcoreError, match=message):
        shrink(vit, Plan(records=(record,)), ONE)


def test_a_model_that_shows_its_stream_says_so(vit: nn.Module) -> None:
    vit.reset_classifier(0)
    with pytest.raises(UsdcoreError, match="width can't be pruned: the model's output shows its entries"):
        shrink(vit, NARROW, ONE)
