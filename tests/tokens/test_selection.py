"""Tokens, heads and branches left out for each image: masked equals skipping, and what is off costs nothing."""

from __future__ import annotations

import itertools

import pytest
import timm
import torch
from counting import counted_macs
from tokens.acting import Acting, Says, quarters, session, some
from torch import Tensor, nn
from zoo import INPUT, KINDS, gap, randomise

from usdcore.errors import UsdcoreError
from usdcore.gates import Draw, TokenDraw
from usdcore.owngroups import reading_group
from usdcore.runner import detach, set_mode
from usdcore.session import Session
from usdcore.strategy import Budget
from usdcore.tokens import prefix_tokens
from usdcore.tokens.cores import key_policy, weighed
from usdcore.tokens.prices import at, token_prices
from usdcore.units import find_units

EXAMPLE = torch.zeros(1, *INPUT, device="meta")

ACTS = [
    ("tokens",),
    ("ffn tokens",),
    ("attention tokens", "ffn tokens"),
    ("heads",),
    ("columns",),
    ("heads", "columns", "tokens"),
    ("branches", "tokens"),
    ("branches", "ffn tokens"),
    ("block", "tokens"),
    ("heads", "branches", "tokens"),
]


def both(model: nn.Module, images: Tensor) -> tuple[Tensor, Tensor]:
    """Masked and skipping."""
    found = []
    with torch.no_grad():
        for mode in ("masked", "skipping"):
            set_mode(model, mode)
            found.append(model(images))
    set_mode(model, "auto")
    return found[0], found[1]


def detached(made: Session) -> nn.Module:
    """The host again."""
    detach(made.model)
    return made.model


@pytest.mark.parametrize("kinds", ACTS, ids=" and ".join)
def test_masked_equals_skipping_and_the_cost_is_counted(kinds: tuple[str, ...], vit: nn.Module, images: Tensor) -> None:
    made = session(vit, Acting(kinds, some()))
    masked, skipping = both(made.model, images)
    assert gap(skipping, masked) < 1e-5
    executed = made.execution(lambda: [images]).macs * len(images)
    assert executed == counted_macs(made.model, images)
    assert executed < 0.95 * len(images) * made.dense.macs


@pytest.mark.parametrize("seed", range(2))
def test_in_every_kind_of_vit(model: nn.Module, fused: bool, images: Tensor, seed: int) -> None:
    made = session(model, Acting(("heads", "tokens", "branches"), some(seed, attention="outer")))
    masked, skipping = both(made.model, images)
    assert gap(skipping, masked) < 1e-5
    assert made.execution(lambda: [images]).macs * len(images) == counted_macs(made.model, images)


def test_what_is_left_out_matters(vit: nn.Module, images: Tensor) -> None:
    host = vit(images).detach()
    for kinds in (("tokens",), ("heads",), ("columns",)):
        made = session(vit, Acting(kinds, some()))
        with torch.no_grad():
            assert gap(made.model(images), host) > 1e-3
            vit = detached(made)
            assert gap(vit(images), host) < 1e-6


@pytest.mark.parametrize("kinds", [("tokens",), ("attention tokens",), ("heads", "tokens"), ("columns", "tokens")])
def test_the_expected_cost_is_that_of_the_decisions(kinds: tuple[str, ...], vit: nn.Module, images: Tensor) -> None:
    made = session(vit, Acting(kinds, some()))
    executed = made.execution(lambda: [images]).macs / made.dense.macs
    made.model.train()
    made.begin_step(0, 1)
    made.losses(made.model(images), torch.zeros(len(images), dtype=torch.long))
    assert float(made.ctx.spent) == pytest.approx(executed, rel=1e-6)  # type: ignore[arg-type]


def test_the_same_for_all_images(vit: nn.Module, images: Tensor) -> None:
    keep = torch.ones(vit.pos_embed.shape[1])
    keep[3:9] = 0
    made = session(vit, Acting(("tokens",), lambda site, shape: TokenDraw(keep)))
    masked, skipping = both(made.model, images)
    assert gap(skipping, masked) < 1e-5
    assert made.execution(lambda: [images]).macs * len(images) == counted_macs(made.model, images)


def test_stated_tokens_can_be_exported(vit: nn.Module, images: Tensor) -> None:
    def first_ones(site: str, shape: tuple[int, int]) -> Draw:
        index = torch.arange(7).expand(shape[0], -1)
        return TokenDraw(torch.zeros(shape).scatter(1, index, 1.0), index=index)

    made = session(vit, Acting(("tokens",), first_ones))
    masked, skipping = both(made.model, images)
    assert gap(skipping, masked) < 1e-5
    exported = torch.export.export(made.model, (images,)).module()
    with torch.no_grad():
        assert gap(exported(images), skipping) < 1e-6


@pytest.mark.parametrize(
    ("options", "reaches"),
    [
        ({}, True),
        ({"is_fixed_key": True}, True),
        ({"is_fixed_delta": True}, True),
        ({"is_fixed_key": True, "is_fixed_delta": True}, False),
    ],
)
def test_the_gradient_reaches_the_decision(
    vit: nn.Module, images: Tensor, options: dict[str, bool], reaches: bool
) -> None:
    """By what a token adds to itself, and by what it tells others as a key."""
    kept = []

    def say(site: str, shape: tuple[int, int]) -> Draw:
        keep = torch.ones(shape).index_fill(1, torch.tensor([3, 5]), 0.0).requires_grad_()
        kept.append(keep)
        return TokenDraw(keep, **options)

    made = session(vit, Acting(("tokens",), say))
    made.model.train()
    kept.clear()
    made.model(images).square().sum().backward()
    assert (kept[0].grad is not None and bool(kept[0].grad.abs().sum() > 0)) == reaches


def test_policies_by_hand() -> None:
    keep = torch.tensor([[1.0, 0.0, 1.0]])
    keys = torch.tensor([[1.0, 0, 1], [1, 1, 1], [1, 0, 1]])
    outer = torch.tensor([[1.0, 0, 1], [0, 1, 0], [1, 0, 1]])
    assert torch.equal(key_policy(keep)[0, 0], keys)
    assert torch.equal(key_policy(keep[0])[0, 0], keys)
    assert torch.equal(key_policy(keep, is_outer=True)[0, 0], outer)
    logits = torch.randn(1, 2, 3, 3)
    terms = logits.exp() * outer
    torch.testing.assert_close(weighed(logits.softmax(-1), outer), terms / terms.sum(-1, keepdim=True))


def test_prices_are_those_of_any_number_of_tokens(model: nn.Module) -> None:
    units = find_units(model, EXAMPLE)
    block = units.blocks[0]
    prices = token_prices(model, units, [block])
    for n in (1, 2, 9, block.num_tokens or 0):
        counted = counted_macs(model.get_submodule(block.name), torch.randn(3, n, block.width))
        assert counted == 3 * sum(at(prices["branch", branch.name], n) for branch in block.branches)


def test_class_and_register_tokens(model: nn.Module) -> None:
    units = find_units(model, EXAMPLE)
    expected = {"distilled": 2}
    kind = next(name for name, build in KINDS.items() if type(build()) is type(model))
    assert all(prefix_tokens(model, block) == expected.get(kind, 1) for block in units.blocks)


REFUSED = {
    "vit_small_patch16_rope_224": r"blocks.1: its tokens can't be left out, as its code does not run with fewer",
    "beit_base_patch16_224": r"blocks.1: its tokens can't be left out, as it does not run with",
    "swin_tiny_patch4_window7_224": r"its stream is no sequence of tokens \[B, N, C\]",
    "cait_xxs24_224": r"blocks.1: its tokens can't be left out, as that is not the same as masking them",
}


@pytest.mark.parametrize("name", REFUSED)
def test_where_tokens_have_places_they_stay(name: str) -> None:
    kwargs = {"img_size": 64, "num_classes": 3, "embed_dim": 32, "depth": 3, "num_heads": 2}
    if name.startswith("swin"):
        kwargs |= {"depths": (3,), "num_heads": (2,), "window_size": 4}
        del kwargs["depth"]
    torch.manual_seed(0)
    model = randomise(timm.create_model(name, **kwargs)).eval()
    made = Session(model, torch.zeros(1, 3, 64, 64), Budget("macs", 0.95, 5, "sample"))
    with pytest.raises(UsdcoreError, match=REFUSED[name]):
        made.begin_phase([Acting(("tokens",), some())])


def test_two_that_select_tokens_are_refused(vit: nn.Module) -> None:
    first, second = Acting(("tokens",), some()), Acting(("ffn tokens",), some(), "other")
    words = "acting and other both act on tokens and do not both declare that they compose there"
    with pytest.raises(UsdcoreError, match=words):
        session(vit, first, second)


def test_a_group_of_no_unit_is_refused(vit: nn.Module) -> None:
    class Elsewhere(Acting):
        def attach(self, site) -> None:
            block = site.units.blocks[1]
            site.gate(block.name, Says(block, ("blocks.1.mlp:columns",), some()))
            site.gating.gates["acting@blocks/1"].groups = lambda model, units: [_misnamed(model, block)]

    with pytest.raises(UsdcoreError, match="a gate brings a group of nowhere, which is no unit of this model"):
        session(vit, Elsewhere((), some()))


def _misnamed(model: nn.Module, block):
    return reading_group(model, block, "nowhere:columns", "columns", quarters(model, "blocks.1.mlp:columns"))


def test_every_image_may_keep_no_head(vit: nn.Module, images: Tensor) -> None:
    """Patterns that are the same for all, and images that have nothing on."""
    for on in itertools.product((0.0, 1.0), repeat=2):
        keep = torch.zeros(5, 4)
        keep[0], keep[1:, 0] = on[0], on[1]
        made = session(vit, Acting(("heads",), lambda site, shape, keep=keep: Draw(keep)))
        masked, skipping = both(made.model, images)
        assert gap(skipping, masked) < 1e-5
        assert made.execution(lambda: [images]).macs * len(images) == counted_macs(made.model, images)


def test_the_trial_leaves_every_mode_as_it_was(vit: nn.Module) -> None:
    """A module that its user keeps in evaluation mode stays so."""
    vit.train()
    vit.blocks[1].norm1.eval()
    before = {name: module.training for name, module in vit.named_modules()}
    Session(vit, torch.zeros(1, *INPUT), Budget("macs", 0.97, 5, "sample")).begin_phase([Acting(("tokens",), some())])
    assert {name: vit.get_submodule(name).training for name in before} == before
