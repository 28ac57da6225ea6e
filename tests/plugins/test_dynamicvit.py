"""DynamicViT from outside: tokens dropped, who learns what when, what is saved, others beside it, mistakes."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
import torch.nn.functional as F
from counting import counted_macs
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from zoo import INPUT, KINDS, gap, randomise

import usdcore
from usdcore.artifact import create, save
from usdcore.errors import UsdcoreError
from usdcore.gates import Draw, ForwardState, Gate, TokenDraw
from usdcore.hooks import registry
from usdcore.plans import Attach, Base, Drop, Plan
from usdcore.runner import set_mode
from usdcore.session import Session
from usdcore.strategy import Attachment, Budget, Strategy
from usdcore_dynamicvit.losses import kl_loss, ratio_loss
from usdcore_dynamicvit.predictor import Predictor

TARGET = torch.tensor([0, 1, 2, 3, 4])
SMALL = {"patch_size": 8, "img_size": 32, "embed_dim": 48, "depth": 3, "num_heads": 4}


def make(name: str = "dynamicvit", **options: Any) -> Any:
    config = registry().config("strategy", name).model_validate({"use": name, **options})
    return registry().load("strategy", name)(config)


def session_of(model: nn.Module, *strategies: Strategy, target: float = 0.85, **kwargs: Any) -> Session:
    session = Session(model, torch.zeros(1, *INPUT), Budget("macs", target, batch_size=5), **kwargs)
    session.begin_phase(strategies)
    return session


def step(session: Session, images: Tensor, number: int = 0, epoch: int = 0) -> tuple[Tensor, dict[str, Tensor]]:
    session.begin_step(number, 10, epoch, images, lr=0.1)
    output = session.model.train()(images)
    return output, session.losses(output, TARGET)


def kept_in(session: Session) -> list[Tensor]:
    """What every block of the last forward had of its tokens, None where all."""
    assert session.gating is not None
    state = session.gating.state
    return [draws[0].keep for name, draws in state.draws.items() if name.endswith(":tokens")]


# --- on a model


@pytest.mark.parametrize("kind", list(KINDS))
def test_it_drops_tokens_for_good(kind: str, images: Tensor) -> None:
    """Neutral is the host; masked is skipping, by torch's own count; the counts are those of the ratio, nested."""
    torch.manual_seed(0)
    model = randomise(KINDS[kind]()).eval()
    with torch.no_grad():
        host = model(images)
        session = session_of(model, make(keep_ratio=0.7), target=0.9)
        assert session.gating is not None
        for gate in session.gating.all():
            gate.neutral()
        assert gap(session.model(images), host) < 1e-5
        for gate in session.gating.all():
            gate.neutral(False)
        skipped = session.model(images)
        first, second = kept_in(session)
        prefix = first.shape[1] - 16
        assert first[:, :prefix].min() == 1
        assert first.sum(1).tolist() == [prefix + 11] * 5
        assert second.sum(1).tolist() == [prefix + 7] * 5
        assert bool((second <= first).all())
        assert len(first.unique(dim=0)) > 1  # each image its own
        assert gap(skipped, host) > 1e-3
        set_mode(session.model, "masked")
        assert gap(session.model(images), skipped) < 1e-5
        set_mode(session.model, "auto")
    execution = session.execution(lambda: iter([images]))
    assert execution.macs * 5 == counted_macs(session.model, images)
    assert execution.macs == pytest.approx(session.least() * session.dense.macs)


def test_the_budget_is_met_without_a_ratio(vit: nn.Module, images: Tensor) -> None:
    session = session_of(vit, make(), target=0.784)
    end = session.end_phase(lambda: iter([images]))
    found = session.calibrate(lambda: iter([images]))
    assert found is not None
    achieved = found.execution.macs / session.dense.macs
    assert end.searched == achieved
    assert 0.779 < achieved <= 0.784


def test_the_step_of_a_phase(vit: nn.Module, images: Tensor) -> None:
    """Terms, and what gets a gradient, by the policy in attention alone: every predictor does."""
    strategy = make(keep_ratio=0.7)
    session = session_of(vit, strategy)
    teacher = session.teachers["dense"].model
    with torch.no_grad():
        for parameter in vit.parameters():
            parameter.mul_(0.9)
    output, terms = step(session, images)
    first, second = (keep[:, 1:] for keep in kept_in(session))
    assert bool((second <= first).all())
    torch.testing.assert_close(terms["dynamicvit_ratio"], 2.0 * ratio_loss([first, second], [0.7, 0.49]))
    with torch.no_grad():
        taught, tokens = teacher(images), teacher.forward_features(images)[:, 1:]
    torch.testing.assert_close(terms["dynamicvit_kl"], 0.5 * kl_loss(output, taught))
    own = session.strategies[0]._taps[0].value[:, 1:]  # type: ignore[attr-defined]
    squares = (own - tokens).square()[second.detach().bool()].mean()
    torch.testing.assert_close(terms["dynamicvit_tokens"], 0.5 * squares)
    F.cross_entropy(output, TARGET).backward()
    session.after_backward()
    for gate in strategy.place_gates:
        assert all(float(p.grad.abs().max()) > 0 for p in gate.predictor.score.parameters())
    assert vit.get_parameter("cls_token").grad is None
    assert vit.get_parameter("pos_embed").grad is None
    assert vit.get_parameter("patch_embed.proj.weight").grad is not None
    assert {g.weight_decay for g in session.parameter_groups} == {0.05, 0.0}
    assert sum(p.numel() for g in session.parameter_groups for p in g.parameters) == 2 * sum(
        p.numel() for p in Predictor(48).parameters()
    )


def test_gradients_stay_finite_where_all_attention_was_on_dropped_tokens(vit: nn.Module, images: Tensor) -> None:
    """A trained model looks at few tokens: without them, what its softmax leaves for the others is next to nothing."""
    strategy = make(keep_ratio=0.7)
    session = session_of(vit, strategy)
    with torch.no_grad():
        for name, parameter in vit.named_parameters():
            if "attn.qkv" in name:
                parameter.mul_(8)
    output, _ = step(session, images)
    F.cross_entropy(output, TARGET).backward()
    norms = [float(p.grad.norm()) for gate in strategy.place_gates for p in gate.parameters()]
    assert 0 < max(norms) < 1e6


def test_weights_of_zero_need_no_teacher(vit: nn.Module, images: Tensor) -> None:
    session = session_of(vit, make(keep_ratio=0.7, kl_weight=0.0, token_weight=0.0))
    assert set(step(session, images)[1]) == {"dynamicvit_ratio"}
    assert not session.teachers


def test_the_model_is_frozen_at_first_and_slow_then(vit: nn.Module, images: Tensor) -> None:
    session = session_of(vit, make(keep_ratio=0.7, frozen_epochs=2))
    for epoch, scale in ((0, 0.0), (1, 0.0), (2, 0.01), (7, 0.01)):
        session.begin_step(0, 10, epoch, images, lr=0.5)
        assert session.host_lr == scale
        assert session.ctx.lr == 0.5 * scale
    session.end_phase(lambda: iter([images]))
    session.begin_phase(session.strategies)  # a later phase
    session.begin_step(0, 10, 0, images, lr=0.5)
    assert session.host_lr == 0.01


def test_saved_and_loaded_elsewhere_it_gives_the_same_logits(tmp_path: Path, images: Tensor) -> None:
    base = Base(name="deit_tiny_patch16_224", kwargs=SMALL, num_classes=7, input_shape=INPUT)
    session = session_of(randomise(create(base)), make(keep_ratio=0.7), plan=Plan(base=base))
    session.end_phase(lambda: iter([images]))
    session.settle(lambda: iter([images]))
    assert len(session.plan.attached) == 2
    save(session.model, session.plan, tmp_path / "m.safetensors")
    save_file({"images": images}, tmp_path / "i.safetensors")
    code = (
        "import sys, torch, usdcore; from safetensors.torch import load_file, save_file; torch.set_num_threads(1);"
        "model, images = usdcore.load(sys.argv[1]), load_file(sys.argv[2])['images'];"
        "save_file({'logits': model(images).detach()}, sys.argv[3])"
    )
    files = [str(tmp_path / f"{name}.safetensors") for name in "mio"]
    subprocess.run([sys.executable, "-c", code, *files], check=True)
    with torch.no_grad():
        expected = session.model.eval()(images)
    assert gap(load_file(files[2])["logits"], expected) < 1e-6
    # Trained on in plain PyTorch, it decides as it did.
    model = usdcore.load(files[0]).train()
    assert gap(model(images).detach(), expected) < 1e-5
    model(images).sum().backward()


def test_export(vit: nn.Module, images: Tensor) -> None:
    session = session_of(vit, make(keep_ratio=0.7))
    session.end_phase(lambda: iter([images]))
    model = session.model.eval()
    batch = torch.export.Dim("batch", min=2)
    exported = torch.export.export(model, (images,), dynamic_shapes={"x": {0: batch}}, strict=False).module()
    with torch.no_grad():
        for given in (images, images[:3]):
            assert gap(exported(given), model(given)) < 1e-6


# --- beside others


@pytest.mark.parametrize("other", [("prune", {}), ("uvc", {"target": 0.9, "skip": "none", "warmup": 0.0})])
def test_pruned_in_one_phase_with_it(vit: nn.Module, images: Tensor, other: tuple[str, dict[str, Any]]) -> None:
    """Heads and neurons go so that the budget is met together, and the tokens stay as few as the ratio says."""
    session = session_of(vit, make(other[0], **other[1]), make(keep_ratio=0.8), target=0.7)
    terms = step(session, images, 9)[1]
    sum(terms.values()).backward()  # type: ignore[union-attr]
    session.after_backward()
    session.after_step()
    session.end_phase(lambda: iter([images]))
    execution = session.execution(lambda: iter([images]))
    assert sum(p.numel() for name, p in vit.named_parameters() if "usdcore" not in name) > session.units.params
    assert execution.macs / session.dense.macs == pytest.approx(0.7, abs=0.005)
    assert execution.macs * 5 == counted_macs(session.model.eval(), images)
    session.begin_phase([session.known["dynamicvit"]])
    assert set(step(session, images)[1]) == {"dynamicvit_ratio", "dynamicvit_kl", "dynamicvit_tokens"}


def test_beside_gates_that_skip_for_a_batch_or_an_image(vit: nn.Module, images: Tensor) -> None:
    gates = make("usdc-dynamic", gate_network="G1", init_logit=0.0)
    session = session_of(vit, gates, make(keep_ratio=0.7), target=0.5)
    for gate in gates.gates.values():
        gate.scope = "sample"
        nn.init.normal_(gate.networks["G1"].head.weight, std=3)
    with torch.no_grad():
        skipped = session.model.eval()(images)
        rates = session.gating.state.dynamic  # type: ignore[union-attr]
        assert any(0 < float(keep.mean()) < 1 for keep in rates.values())
        set_mode(session.model, "masked")
        assert gap(session.model(images), skipped) < 1e-5
        set_mode(session.model, "auto")
    assert session.execution(lambda: iter([images])).macs * 5 == counted_macs(session.model, images)
    step(session, images)[1]["dynamicvit_ratio"].backward()


class Other(Gate):
    """Somebody else's choice of tokens."""

    sites = ("blocks.0:tokens",)
    scope = "token"

    def draw(self, x_BNC: Tensor | None, state: ForwardState) -> dict[str, Draw]:
        return {self.sites[0]: TokenDraw(torch.ones(17))}


class Selector(Strategy):
    def attach(self, site: Attachment) -> None:
        site.gate("blocks.0", Other())


def test_another_that_chooses_tokens_is_refused(vit: nn.Module) -> None:
    other = Selector(type("Config", (), {"use": "other"})())
    with pytest.raises(UsdcoreError, match="both act on tokens"):
        session_of(vit, make(keep_ratio=0.7), other)
    assert "tokens" in type(make().config).alone


# --- mistakes and what is left


def test_a_block_that_is_gone_takes_its_place_along(vit: nn.Module, images: Tensor) -> None:
    strategy = make(keep_ratio=0.7)
    session = session_of(vit, strategy)
    first, second = strategy.records({"blocks.2.attn"}, {}, settle=False)
    assert (second.config["blocks"], second.config["before"]) == (["blocks.2"], "blocks.1")
    gone = {"blocks.1.attn", "blocks.1.mlp"}
    (record,) = strategy.records(gone, {}, settle=False)
    assert (record.site, record.config["before"]) == ("blocks.2", None)
    plan = Plan(records=(*(Drop(branch=name) for name in sorted(gone)), record))
    session.begin_phase([])
    bare = session.model
    usdcore.runner.detach(bare)
    small = usdcore.shrink(bare, plan, torch.zeros(1, *INPUT, device="meta"))
    assert small(images).shape == (5, 7)
    assert first.key != record.key


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"places": [1, 3]}, r"has 3 blocks, numbered from 0, so not places \[1, 3\]"),
        ({"final": "nrm"}, "no module named 'nrm'"),
        ({"final": "blocks.1.mlp.fc1"}, r"fc1 gives \[17, 192\] per image.*tokens are \[17, 48\].*token_weight: 0"),
    ],
)
def test_what_the_model_does_not_have(vit: nn.Module, options: dict[str, Any], message: str) -> None:
    with pytest.raises(UsdcoreError, match=message):
        session_of(vit, make(keep_ratio=0.7, **options))


def test_a_ratio_needs_a_budget_in_macs(vit: nn.Module) -> None:
    session = Session(vit, torch.zeros(1, *INPUT), Budget("params", 0.9, batch_size=5))
    with pytest.raises(UsdcoreError, match="fewer tokens save no params; state a ratio"):
        session.begin_phase([make()])


def test_a_budget_between_two_counts_is_refused(vit: nn.Module) -> None:
    with pytest.raises(
        UsdcoreError, match=r"of 16 patches .* below 0\.8 are 0\.7840 of the dense model: ask for these"
    ):
        session_of(vit, make(), target=0.8)


def test_a_budget_that_the_ratio_does_not_meet_is_refused(vit: nn.Module) -> None:
    with pytest.raises(UsdcoreError, match=r"budget macs 0\.6 can't be reached.*ask for at least that"):
        session_of(vit, make(keep_ratio=0.7), target=0.6)


def test_a_model_without_one_stream_of_tokens_is_refused() -> None:
    swin = timm.create_model(
        "swin_tiny_patch4_window7_224", img_size=32, window_size=4, embed_dim=16, depths=(2, 2), num_heads=(2, 2)
    )
    with pytest.raises(UsdcoreError, match="tokens are dropped from one stream"):
        session_of(swin, make(keep_ratio=0.7))


def test_a_strangers_record_is_refused() -> None:
    record = Attach(site="x", plugin="dynamicvit", distribution="d", version="1", config={"blocks": ["x"], "width": 0})
    with pytest.raises(UsdcoreError, match=r"the plan's gate at x can't be built: width"):
        registry().load("strategy", "dynamicvit").rebuild(record)


@pytest.mark.parametrize("places", [[2, 1], [1, 1], [-1]])
def test_places_are_ascending(places: list[int]) -> None:
    with pytest.raises(ValueError, match="ascending, each once"):
        make(places=places)
