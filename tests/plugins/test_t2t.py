"""T2T-ViT: the published sizes to the last digit, timm's manners, and compression as of any other model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from counting import counted_macs
from test_surgery import ONE, masked, random_plan
from torch import nn
from zoo import INPUT, gap, randomise

import usdcore
from usdcore.backbones import require_model
from usdcore.costs import cost
from usdcore.hooks import registry
from usdcore.plans import Base, Drop, Plan
from usdcore.session import Session
from usdcore.strategy import Budget
from usdcore.surgery import shrink
from usdcore.units import find_units

SMALL: dict[str, Any] = {"img_size": 32, "embed_dim": 48, "depth": 2, "num_heads": 4, "token_dim": 16}
SMALL |= {"num_random_features": 8, "num_classes": 7}


def small(**kwargs: Any) -> nn.Module:
    require_model("t2t_vit_14")
    model: nn.Module = timm.create_model("t2t_vit_14", **(SMALL | kwargs))
    return model


@pytest.fixture
def t2t() -> nn.Module:
    torch.manual_seed(0)
    return randomise(small()).eval()


def possible_plan(model: nn.Module, seed: int) -> Plan:
    """Without dropping the narrow layers' feed-forward parts, which can only be pruned inside."""
    plan = random_plan(model, seed)
    return Plan(records=tuple(r for r in plan.records if not (isinstance(r, Drop) and r.branch.startswith("tokens"))))


# --- the published sizes


@pytest.mark.parametrize(
    ("name", "depth", "params", "trained", "macs"),
    [
        ("t2t_vit_14", 14, 21_545_550, 21_465_806, 4_783_468_544),
        ("t2t_vit_19", 19, 39_177_422, 39_085_070, 8_479_682_176),
    ],
)
def test_published_sizes(name: str, depth: int, params: int, trained: int, macs: int) -> None:
    require_model(name)
    with torch.device("meta"):
        model = timm.create_model(name)
    assert sum(p.numel() for p in model.parameters() if p.requires_grad) == trained
    units = find_units(model, torch.zeros(1, 3, 224, 224, device="meta"))
    assert (units.params, units.macs) == (params, macs)
    names = {f"blocks.{i}.{part}" for i in range(depth) for part in ("attn", "mlp")}
    gateable = {branch.name for block in units.blocks for branch in block.branches if branch.reason is None}
    assert gateable == names | {"tokens.layer1.mlp", "tokens.layer2.mlp"}
    assert {unit.name for unit in units.attention} == {name for name in names if name.endswith("attn")}
    dims = {"qk_dims", "v_dims"}
    prunable = {group.name for group in units.groups.values() if group.reason is None and group.kind not in dims}
    stem = {"tokens.layer1.mlp:hidden", "tokens.layer2.mlp:hidden"}
    assert prunable == stem | {f"{n}:heads" if n.endswith("attn") else f"{n}:hidden" for n in names}


def test_the_modules_own_attention_says_why_it_stays() -> None:
    units = find_units(small(), ONE)
    for name in ("tokens.layer1.attn:hidden", "tokens.layer2.attn:hidden"):
        assert "its parameters are used a second time" in str(units.groups[name].reason)


# --- the architecture


@pytest.mark.parametrize(("size", "tokens"), [(32, 2 * 2), ((64, 32), 4 * 2), (50, 3 * 3)])
def test_image_sizes(size: int | tuple[int, int], tokens: int) -> None:
    model = small(img_size=size, in_chans=1).eval()
    height, width = (size, size) if isinstance(size, int) else size
    features = model.forward_features(torch.randn(2, 1, height, width))
    assert features.shape == (2, 1 + tokens, 48)
    assert model.forward_head(features, pre_logits=True).shape == (2, 48)


def test_another_image_size_is_refused(t2t: nn.Module) -> None:
    with pytest.raises(ValueError, match=r"images of \[64, 64\] were given to a model for \[32, 32\]; set img_size"):
        t2t(torch.zeros(1, 3, 64, 64))


def test_random_features_approach_softmax_attention() -> None:
    """With many features the linear attention is the softmax one, without a scale."""
    from usdcore_t2t.tokens import LinearAttention

    torch.manual_seed(0)
    attention = LinearAttention(inputs=4, width=4, num_features=400_000, drop_rate=0.0)
    q, k, v = 0.5 * torch.randn(3, 2, 6, 4)
    with torch.no_grad():
        torch.testing.assert_close(attention._attend(q, k, v), torch.softmax(q @ k.mT, -1) @ v, atol=0.02, rtol=0)


def test_positions_are_sinusoids_and_stay_fixed() -> None:
    from usdcore_t2t.model import sinusoids

    table = sinusoids(5, 8)[0]
    torch.testing.assert_close(table[0], torch.tensor([0.0, 1.0] * 4))
    position = torch.arange(5.0)
    torch.testing.assert_close(table[:, 2], torch.sin(position / 10))
    torch.testing.assert_close(table[:, 7], torch.cos(position / 1000))
    frozen = {name for name, p in small().named_parameters() if not p.requires_grad}
    assert frozen == {"pos_embed", "tokens.layer1.attn.random_features", "tokens.layer2.attn.random_features"}


def test_autocast_does_not_touch_the_exponentials(t2t: nn.Module, images: torch.Tensor) -> None:
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        assert gap(t2t(images).float(), t2t.double()(images.double()).float()) < 0.1


def test_it_is_one_of_timms(t2t: nn.Module, images: torch.Tensor) -> None:
    assert t2t.default_cfg["classifier"] == "head"
    assert not timm.is_model_pretrained("t2t_vit_14")
    assert t2t.no_weight_decay() == {"cls_token", "pos_embed"}
    assert t2t.get_classifier() is t2t.head
    t2t.reset_classifier(3)
    assert t2t(images).shape == (5, 3)
    t2t.reset_classifier(0)
    assert t2t(images).shape == (5, 48)
    with pytest.raises(ValueError, match="no pooling 'avg'"):
        t2t.reset_classifier(3, "avg")
    with pytest.raises(RuntimeError, match="No pretrained weights exist"):
        timm.create_model("t2t_vit_14", pretrained=True)


def test_the_authors_names_are_understood(t2t: nn.Module) -> None:
    theirs = {"attn.norm.": "norm1.", "attn.kqv.": "kqv.", "attn.proj.": "proj.", "norm.": "norm2.", "mlp.": "mlp."}
    theirs["attn.random_features"] = "w"
    published = {}
    for name, tensor in t2t.state_dict().items():
        for layer in "12":
            for ours, other in theirs.items():
                if name.startswith(f"tokens.layer{layer}.{ours}"):
                    name = name.replace(f"tokens.layer{layer}.{ours}", f"tokens_to_token.attention{layer}.{other}")
        published[name.replace("tokens.project", "tokens_to_token.project")] = tensor
    assert not any(name.startswith("tokens.") for name in published)
    other = small()
    other.load_state_dict(published, strict=True)
    assert all(torch.equal(tensor, t2t.state_dict()[name]) for name, tensor in other.state_dict().items())


# --- compression


def test_masked_equals_shrunk(t2t: nn.Module, images: torch.Tensor) -> None:
    t2t, images = t2t.double(), images.double()
    plan = possible_plan(t2t, 1)
    cut = shrink(t2t, plan, ONE.double())
    with torch.no_grad():
        assert gap(cut(images), masked(t2t, plan)(images)) < 1e-11
        assert gap(cut(images), t2t(images)) > 1e-2
    predicted = cost(find_units(t2t, ONE.double()), plan)
    assert predicted.macs * len(images) == counted_macs(cut, images)
    assert predicted.params == sum(p.numel() for p in cut.parameters())


def test_saved_and_loaded(t2t: nn.Module, images: torch.Tensor, tmp_path: Path) -> None:
    kwargs = {key: value for key, value in SMALL.items() if key != "num_classes"}
    base = Base(name="t2t_vit_14", kwargs=kwargs, num_classes=7, input_shape=INPUT)
    plan = Plan(base=base, records=possible_plan(t2t, 3).records)
    cut = shrink(t2t, plan, ONE)
    usdcore.save(cut, plan, tmp_path / "m.safetensors")
    with torch.no_grad():
        assert torch.equal(usdcore.load(tmp_path / "m.safetensors")(images), cut(images))
    stated = usdcore.artifact.read_plan(tmp_path / "m.safetensors").base
    assert stated is not None
    assert stated.distribution == "usdcore"


@pytest.mark.parametrize(("name", "target"), [("usdc-static", 0.8), ("uvc", 0.92)])
def test_strategies_train_and_shrink_it(t2t: nn.Module, images: torch.Tensor, name: str, target: float) -> None:
    config = registry().config("strategy", name).model_validate({"use": name})
    session = Session(t2t, ONE, Budget("macs", target, batch_size=5))
    session.begin_phase([registry().load("strategy", name)(config)])
    weights = [p for n, p in session.model.named_parameters() if p.requires_grad and not n.startswith("usdcore.")]
    groups = [{"params": g.parameters, "lr": g.lr or 0.01} for g in session.parameter_groups if g.parameters]
    optimizer = torch.optim.SGD([{"params": weights, "lr": 1e-3}, *groups])
    session.model.train()
    for step in range(3):
        session.begin_step(step, 3, images=images, lr=1e-3)
        output = session.model(images)
        classes = torch.zeros(5, dtype=torch.long)
        loss = nn.functional.cross_entropy(output, classes) + session.loss(output, classes)
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        session.after_backward()
        optimizer.step()
        session.after_step()
    assert bool(torch.isfinite(loss))
    session.end_phase(lambda: iter([images]))
    share = counted_macs(session.model.eval(), images) / 5 / session.dense.macs
    assert target - 0.06 < share <= target
