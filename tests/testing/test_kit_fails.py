"""The kit can fail: each broken plugin breaks the law that it should, and no other."""

from __future__ import annotations

from typing import Any

import pytest

from usdcore.testing import Outcome, conformance, outcomes
from usdcore.testing.laws import LAWS

pytestmark = pytest.mark.usefixtures("broken_plugins")

BROKEN: list[tuple[str, str, set[str], str]] = [
    ("strategy", "heavy", {"registers_without_torch"}, "imports torch"),
    ("strategy", "mute", {"options_are_documented"}, "the options power say nothing about themselves"),
    ("strategy", "loose", {"options_are_validated"}, "'power' takes anything"),
    ("strategy", "not-neutral", {"neutral_equals_original"}, "logits change by"),
    ("strategy", "unread", {"gates_are_read"}, "decides about blocks.0.attn never acts"),
    ("strategy", "idle", {"learns"}, "1 of the 2 parameters that it trains never get a gradient"),
    ("strategy", "meddling", {"masked_equals_shrunk"}, "from those of the shrunk model"),
    ("strategy", "missing", {"meets_the_budget"}, "of the dense model is left of the 0.7"),
    ("strategy", "forgetful", {"state_resumes"}, "decided otherwise"),
    ("strategy", "own-eyes", {"two_processes_agree"}, "do not have the same state_dict() after step 0"),
    ("strategy", "shouting", {"composes"}, "two strategies give a loss term named 'resource'"),
    ("strategy", "lossy", {"plan_survives"}, "after a phase gives logits that differ"),
    ("strategy", "miscounting", {"cost_equals_counted", "composes"}, "and torch counts"),
    ("strategy", "itemised", {"exports"}, "torch.export gave"),
    ("gate-network", "cheap", {"macs_are_counted", "cost_equals_counted"}, ".macs is 0, and torch counts 96"),
    ("gate-network", "mingling", {"images_are_apart"}, "an image alone gets other logits"),
    ("split", "rash", {"generator_decides"}, "draws from torch's global generator"),
    ("data-source", "fickle", {"loading_repeats"}, "the fingerprint differs"),
]


#: Laws that take long, and who is not tried by them: what is wrong there has nothing to do with them.
LONG = ("state_resumes", "plan_survives", "exports", "two_processes_agree")
BRIEF = ("heavy", "mute", "loose", "unread", "idle", "shouting", "cheap", "mingling", "rash")


def tried(kind: Any, name: str) -> list[Outcome]:
    own = {law.name for law in LAWS[kind]}
    without = {law: "takes long" for law in LONG if name in BRIEF and law in own}
    return outcomes(conformance(name, kind=kind, models=["vit"], beside=["usdc-static"], steps=4, without=without))


@pytest.mark.parametrize(("kind", "name", "laws", "text"), BROKEN, ids=[name for _, name, _, _ in BROKEN])
def test_what_is_broken_is_found(kind: str, name: str, laws: set[str], text: str) -> None:
    found = [outcome for outcome in tried(kind, name) if outcome.state == "broken"]
    assert {outcome.law for outcome in found} == laws, "\n".join(f"{o.law}: {o.text}" for o in found)
    assert text in found[0].text
    assert all("where: " in outcome.text and "to do: " in outcome.text for outcome in found)


@pytest.mark.parametrize("name", ["ranked", "gated", "skipping"])
def test_what_is_right_passes(name: str) -> None:
    assert [outcome for outcome in tried("strategy", name) if outcome.state == "broken"] == []
