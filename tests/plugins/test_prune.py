"""Pruning by importance, from outside: what an entry is worth, shares, rounding, phases without training, zeros."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import timm
import torch
from counting import counted_macs
from torch import nn
from zoo import INPUT, randomise

from usdcore.errors import UsdcoreError
from usdcore.hooks import registry
from usdcore.session import Session
from usdcore.strategy import Budget, Strategy

ONE = torch.zeros(1, *INPUT)


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
    """The sizes of the groups that are left."""
    session.end_phase(lambda: iter([torch.randn(4, *INPUT)]))
    return {name: group.size for name, group in session.units.groups.items()}


def steps(session: Session, images: torch.Tensor, number: int = 2, lr: float = 0.1) -> None:
    optimizer = torch.optim.SGD([*session.model.parameters()], lr=lr, momentum=0.9)
    session.model.train()
    for step in range(number):
        session.begin_step(step, number, images=images)
        output = session.model(images)
        optimizer.zero_grad()
        nn.functional.cross_entropy(output, torch.arange(len(images))).backward()
        session.after_backward()
        optimizer.step()
        session.after_step()


# --- importance


def mlp_slices(model: nn.Module, neuron: int) -> list[torch.Tensor]:
    mlp: Any = model.get_submodule("blocks.1.mlp")
    return [mlp.fc1.weight[neuron], mlp.fc1.bias[neuron], mlp.fc2.weight[:, neuron]]


def head_slices(model: nn.Module, head: int) -> list[torch.Tensor]:
    attention: Any = model.get_submodule("blocks.1.attn")
    dim, width = 12, 48
    rows = [slice(part * width + head * dim, part * width + (head + 1) * dim) for part in range(3)]
    own = [t for r in rows for t in (attention.qkv.weight[r], attention.qkv.bias[r])]
    return [*own, attention.proj.weight[:, head * dim : (head + 1) * dim]]


@pytest.mark.parametrize(("importance", "order"), [("l1", 1), ("l2", 2)])
def test_magnitude_is_the_norm_of_all_that_goes_with_an_entry(vit: nn.Module, importance: str, order: int) -> None:
    prune = make(importance=importance)
    begun(vit, prune)
    for slices, kind in ((mlp_slices, "mlp:hidden"), (head_slices, "attn:heads")):
        flat = torch.cat([t.detach().flatten() for t in slices(vit, 3)])
        torch.testing.assert_close(prune.importance(f"blocks.1.{kind}")[3], flat.norm(order))


@pytest.mark.parametrize("power", [1, 2])
def test_taylor_sums_weight_times_gradient_over_steps(vit: nn.Module, images: torch.Tensor, power: int) -> None:
    prune = make(importance="taylor", taylor_power=power)
    session = begun(vit, prune)
    expected = 0.0
    for step in range(2):
        vit.zero_grad()
        session.begin_step(step, 2)
        vit(images * (step + 1)).square().sum().backward()
        session.after_backward()
        gradient = {id(p): p.grad for p in vit.parameters()}
        mlp: Any = vit.get_submodule("blocks.1.mlp")
        for parameter, index in ((mlp.fc1.weight, 5), (mlp.fc1.bias, 5), (mlp.fc2.weight, (slice(None), 5))):
            expected += float((parameter[index].detach() * gradient[id(parameter)][index]).abs().pow(power).sum())
    assert float(prune.importance("blocks.1.mlp:hidden")[5]) == pytest.approx(expected, rel=1e-4)


def test_taylor_needs_a_step(vit: nn.Module) -> None:
    with pytest.raises(UsdcoreError, match="took no step"):
        ended(begun(vit, make(importance="taylor")))


def test_random_depends_on_the_seed_alone(vit: nn.Module) -> None:
    one, same, other = (make(importance="random", seed=seed) for seed in (1, 1, 2))
    for prune in (one, same, other):
        torch.rand(3)
        begun(vit, prune)
    name = "blocks.0.mlp:hidden"
    assert torch.equal(one.importance(name), same.importance(name))
    assert not torch.equal(one.importance(name), other.importance(name))
    assert not torch.equal(one.importance(name), one.importance("blocks.1.mlp:hidden"))


def test_bn_scale_reads_the_norm_on_the_neurons() -> None:
    model = randomise(timm.create_model("levit_128s", num_classes=5)).eval()
    session = Session(model, torch.zeros(1, 3, 224, 224), Budget("macs", 0.9, batch_size=2))
    prune = make(importance="bn_scale", heads=False)
    session.begin_phase([prune])
    name = next(name for name in prune.entries if ".mlp" in name)
    unit = name.rpartition(":")[0]
    norm: Any = model.get_submodule(f"{unit}.ln1.bn")
    torch.testing.assert_close(prune.importance(name), norm.weight.detach().abs())


def test_bn_scale_names_groups_without_one(vit: nn.Module) -> None:
    with pytest.raises(UsdcoreError, match=r"there is none on blocks\.0\.attn:heads.* and 2 more; leave these out"):
        begun(vit, make(importance="bn_scale"))


@pytest.mark.parametrize("normalize", ["mean", "max", "none"])
def test_normalisation_makes_layers_comparable(vit: nn.Module, normalize: str) -> None:
    """A layer whose weights are scaled up as a whole keeps more, unless its importances are normalised."""
    with torch.no_grad():
        for parameter in vit.get_submodule("blocks.1.mlp").parameters():
            parameter.mul_(100)
    left = ended(begun(vit, make(heads=False, normalize=normalize), target=0.8))
    fewest = min(left["blocks.0.mlp:hidden"], left["blocks.2.mlp:hidden"])
    assert (left["blocks.1.mlp:hidden"] == 192) == (normalize == "none")
    assert (fewest < 100) == (normalize == "none")


# --- scope and budget


@pytest.mark.parametrize("metric", ["macs", "params"])
@pytest.mark.parametrize("scope", ["global", "local"])
def test_the_budget_is_met(vit: nn.Module, images: torch.Tensor, scope: str, metric: Any) -> None:
    session = begun(vit, make(scope=scope), target=0.6, metric=metric)
    ended(session)
    if metric == "macs":
        spent = counted_macs(session.model.eval(), images) / len(images) / session.dense.macs
    else:
        spent = sum(p.numel() for p in session.model.parameters()) / session.dense.params
    assert 0.595 < spent <= 0.6


def test_local_removes_the_same_share_of_each_group(vit: nn.Module) -> None:
    with torch.no_grad():
        vit.get_submodule("blocks.1.mlp.fc1").weight[:90] *= 1e-3
    local = ended(begun(vit, make(scope="local", heads=False), target=0.6))
    kept = [size for name, size in local.items() if name.endswith("hidden")]
    assert max(kept) - min(kept) <= 1


def test_global_removes_where_least_is_lost(vit: nn.Module) -> None:
    mlp: Any = vit.get_submodule("blocks.1.mlp")
    with torch.no_grad():
        for part in (mlp.fc1.weight[:100], mlp.fc1.bias[:100], mlp.fc2.weight[:, :100]):
            part.mul_(0.01)
    session = begun(vit, make(heads=False), target=0.75)
    left = ended(session)
    assert left["blocks.1.mlp:hidden"] <= 92 < min(left["blocks.0.mlp:hidden"], left["blocks.2.mlp:hidden"])
    assert min(session.plan.keep("blocks.1.mlp:hidden") or ()) >= 100


@pytest.mark.parametrize("kind", ["qk_dims", "v_dims"])
def test_dims_of_heads_local_leaves_equal_heads(vit: nn.Module, kind: str) -> None:
    session = begun(vit, make(heads=False, hidden=False, scope="local", **{kind: True}), target=0.9)
    ended(session)
    group = session.units.groups[f"blocks.0.attn:{kind}"]
    counts = np.bincount(group.parent_of)  # type: ignore[arg-type]
    assert group.size < 48
    assert counts.max() - counts.min() <= 1


def test_named_again_it_removes_nothing_more(vit: nn.Module) -> None:
    prune = make(ratios={"*.mlp": 0.5}, heads=False)
    session = begun(vit, prune, target=0.715)
    first = ended(session)
    session.begin_phase([prune])
    assert ended(session) == first


def test_an_unreachable_budget_is_refused_before_training(vit: nn.Module) -> None:
    with pytest.raises(UsdcoreError, match=r"macs 0\.3 can't be reached"):
        begun(vit, make(heads=False), target=0.3)


# --- ratios


def test_ratios_are_kept_and_the_budget_takes_the_rest(vit: nn.Module) -> None:
    ratios = {"blocks.0.*": 0.0, "blocks.1.mlp:hidden": 0.25, "blocks.1.attn": 0.5}
    session = begun(vit, make(ratios=ratios), target=0.7)
    left = ended(session)
    assert (left["blocks.0.attn:heads"], left["blocks.0.mlp:hidden"]) == (4, 192)
    assert (left["blocks.1.attn:heads"], left["blocks.1.mlp:hidden"]) == (2, 144)
    assert 0.695 < session.units.macs / session.dense.macs <= 0.7


def test_ratios_of_dims_cut_every_head_alike(vit: nn.Module) -> None:
    session = begun(vit, make(heads=False, v_dims=True, qk_dims=True, ratios={"*.attn": 0.25}), target=0.7)
    ended(session)
    for block, kind in ((block, kind) for block in range(3) for kind in ("v_dims", "qk_dims")):
        group = session.units.groups[f"blocks.{block}.attn:{kind}"]
        assert np.bincount(group.parent_of).tolist() == [9] * 4  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("ratios", "text"),
    [
        ({"blocks.1.mpl": 0.5}, r"'blocks\.1\.mpl' matches nothing .*; did you mean 'blocks\.1\.mlp"),
        ({"*.mlp": 0.5, "blocks.1.*": 0.2}, r"'\*\.mlp' and 'blocks\.1\.\*' both match blocks\.1\.mlp:hidden"),
        ({"*": 0.9}, r"ratios alone leave 0\.\d+ of the dense model's macs .* 0\.7: set budget\.macs to 0\.\d+ or"),
        ({"*": 0.1}, r"macs 0\.7 can't be reached"),
        ({"*": 0.0}, r"nothing to prune"),
    ],
)
def test_mistakes_in_ratios(vit: nn.Module, ratios: dict[str, float], text: str) -> None:
    with pytest.raises(UsdcoreError, match=text):
        begun(vit, make(ratios=ratios), target=0.7)


# --- rounding


@pytest.mark.parametrize("heads", [False, True])
@pytest.mark.parametrize("step", [8, 40])
def test_round_to_keeps_multiples_and_meets_the_budget_from_below(vit: nn.Module, step: int, heads: bool) -> None:
    session = begun(vit, make(heads=heads), target=0.7, round_to=step)
    left = {name: size for name, size in ended(session).items() if name.endswith("hidden")}
    assert all(size % step == 0 or size == 192 for size in left.values())
    spent, dense = session.units.macs / session.dense.macs, session.dense.macs
    slack = step * session.units.groups["blocks.0.mlp:hidden"].macs_per_entry / dense
    assert 0.7 - slack <= spent <= 0.7


def test_round_to_beside_ratios(vit: nn.Module) -> None:
    session = begun(vit, make(heads=False, ratios={"blocks.1.mlp": 0.45}), target=0.75, round_to=16)
    left = ended(session)
    assert left["blocks.1.mlp:hidden"] == 112
    assert left["blocks.0.mlp:hidden"] % 16 == 0


# --- beside others


@pytest.mark.parametrize("other", ["usdc-static", "uvc"])
@pytest.mark.parametrize("first", [True, False])
def test_two_strategies_on_one_group_are_refused(vit: nn.Module, other: str, first: bool) -> None:
    pair = [make(), make(other)]
    with pytest.raises(UsdcoreError, match=r"both act on .*(heads|hidden)"):
        begun(vit, *(pair if first else pair[::-1]))


def test_it_composes_with_distill_and_with_gates(vit: nn.Module, images: torch.Tensor) -> None:
    prune = make()
    session = begun(vit, prune, make("distill", kind="soft"), make("usdc-dynamic", gate_network="G1"), target=0.6)
    session.begin_step(0, 1, images=images)
    assert "distill" in session.losses(session.model.train()(images), torch.zeros(5, dtype=torch.long))
    ended(session)
    assert session.execution(lambda: iter([images])).macs / session.dense.macs <= 0.6


# --- single weights


def zeros(model: nn.Module, prefix: str = "blocks.") -> float:
    weights = [
        m.weight for n, m in model.named_modules() if isinstance(m, nn.Linear | nn.Conv2d) and n.startswith(prefix)
    ]
    return sum(int((w == 0).sum()) for w in weights) / sum(w.numel() for w in weights)


@pytest.mark.parametrize("scope", ["global", "local"])
def test_zeros_are_the_smallest_weights_and_stay_zero(vit: nn.Module, images: torch.Tensor, scope: str) -> None:
    before = {name: m.weight.detach().clone() for name, m in vit.named_modules() if isinstance(m, nn.Linear)}
    sparse = make("prune-unstructured", sparsity=0.7, scope=scope)
    session = begun(vit, sparse, target=1.0)
    steps(session, images, 1, lr=0.0)
    for name, weight in before.items():
        now = vit.get_submodule(name).weight
        if name.startswith("blocks.") and scope == "local":
            assert int((now == 0).sum()) == round(0.7 * now.numel())
            assert weight[now == 0].abs().max() <= weight[now != 0].abs().min()
        elif not name.startswith("blocks."):
            assert torch.equal(now, weight)
    steps(session, images, 3)
    assert zeros(vit) == pytest.approx(0.7, abs=1e-4)
    end = session.end_phase(lambda: iter([images]))
    assert session.units.macs == session.dense.macs
    (note,) = end.notes
    assert "70.0% of the weights of 12 layers are zero" in note
    assert "are those of the dense layers" in note


def test_sparsity_rises_and_zeros_never_return(vit: nn.Module, images: torch.Tensor) -> None:
    session = begun(vit, make("prune-unstructured", sparsity=0.8, ramp=0.5, every=1), target=1.0)
    shares, gone = [], torch.zeros(0)
    optimizer = torch.optim.SGD(vit.parameters(), lr=0.05)
    for step in range(6):
        session.begin_step(step, 6)
        session.model(images).square().mean().backward()
        optimizer.step()
        session.after_step()
        now = vit.get_submodule("blocks.0.mlp.fc1").weight.detach().flatten() == 0
        assert not len(gone) or bool(now[gone].all())
        gone = now
        shares.append(zeros(vit))
    assert shares[0] == 0
    assert shares[1] == pytest.approx(0.8 * (1 - (2 / 3) ** 3), abs=1e-3)
    assert shares[3:] == pytest.approx([0.8] * 3, abs=1e-4)


def test_zeros_by_patterns(vit: nn.Module) -> None:
    session = begun(
        vit,
        make("prune-unstructured", sparsity=0.5, weights="all", ratios={"blocks.1.*": 0.0, "head": 0.9}),
        target=1.0,
    )
    ended(session)
    assert zeros(session.model, "blocks.1.") == 0
    assert zeros(session.model, "head") == pytest.approx(0.9, abs=2e-3)
    assert zeros(session.model, "patch_embed") > 0
    with pytest.raises(UsdcoreError, match=r"'blocks\.1\.mlp\.fc3' matches nothing"):
        begun(vit, make("prune-unstructured", sparsity=0.5, ratios={"blocks.1.mlp.fc3": 0.0}), target=1.0)


def test_zeros_stay_through_surgery(vit: nn.Module, images: torch.Tensor) -> None:
    sparse = make("prune-unstructured", sparsity=0.5, scope="local")
    session = begun(vit, make(), sparse, target=0.6)
    ended(session)
    session.begin_phase([sparse])
    gone = {name: mask == 0 for name, mask in sparse.masks.items()}
    steps(session, images)
    for name, where in gone.items():
        assert bool((session.model.get_submodule(name).weight[where] == 0).all())
