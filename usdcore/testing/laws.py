"""The laws, by kind of plugin: what each says, and where its check is. Imports no torch: a check is imported when it is
tried.
"""

from __future__ import annotations

import importlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from collections.abc import Callable

    from usdcore.hooks import Kind
    from usdcore.testing.subject import Subject

Over = Literal["nothing", "models", "others"]


class Broken(AssertionError):
    """A law does not hold. `what` went wrong `where`, and what to `do`."""

    def __init__(self, where: str, what: str, do: str) -> None:
        super().__init__(f"{what}\n  where: {where}\n  to do: {do}")


class NotTried(Exception):
    """A law that says nothing about this plugin, or that can't be tried before another one holds."""


@dataclass(frozen=True)
class Law:
    """One law: its test is called ``test_NAME``. `over` says what it is tried with, one test for each."""

    name: str
    says: str
    check: str
    over: Over = "nothing"

    def cases(self, subject: Subject) -> tuple[str | None, ...]:
        """What the law is tried with."""
        if self.over == "nothing":
            return (None,)
        return subject.models if self.over == "models" else subject.beside

    def try_on(self, subject: Subject, case: str | None) -> None:
        """Raises `Broken` or `NotTried`; anything else is the plugin's own error."""
        if self.name in subject.without:
            raise NotTried(f"left out by the author: {subject.without[self.name]}")
        module, _, name = self.check.partition(":")
        check: Callable[..., None] = getattr(importlib.import_module(f"usdcore.testing.{module}"), name)
        if self.name != "registers_without_torch":
            subject.require_registered()
        if case is None:
            check(subject)
        else:
            check(subject, case)


COMMON = (
    Law("registers_without_torch", "listing plugins stays fast", "common:registers"),
    Law("options_are_documented", "every option says what it means", "common:documented"),
    Law("options_are_validated", "what is no valid option is refused, and defaults are valid", "common:validated"),
)
NEUTRAL = Law("neutral_equals_original", "with neutral gates the model is the host", "gating:neutral", "models")
GATES = Law("gates_are_read", "every gate decides about all of its sites, and the model obeys", "gating:read")
LEARNS = Law("learns", "loss terms are finite, and what is trained gets a gradient", "training:learns")
MASKED = Law("masked_equals_shrunk", "masking and removing give the same logits", "shrinking:masked", "models")
COUNTED = Law("cost_equals_counted", "MACs and parameters are those that are counted", "shrinking:counted")
BUDGET = Law("meets_the_budget", "what is decided costs what was asked for", "shrinking:budget")
RESUMES = Law("state_resumes", "a run that is broken off ends as one that is not", "resuming:resumes")
PLAN = Law("plan_survives", "the saved file gives the same model, and plans compose", "plans:survives")
EXPORTS = Law("exports", "what is left can be exported", "plans:exports")
BESIDE = Law("composes", "beside a built-in it works or is refused in words", "beside:composes", "others")
PROCESSES = Law("two_processes_agree", "two processes come to one model", "processes:agree")

STRATEGY = (NEUTRAL, GATES, LEARNS, MASKED, COUNTED, BUDGET, RESUMES, PLAN, EXPORTS, BESIDE, PROCESSES)
INSIDE = (NEUTRAL, GATES, LEARNS, COUNTED, RESUMES, PLAN, PROCESSES)

LAWS: dict[Kind, tuple[Law, ...]] = {
    "strategy": (*COMMON, *STRATEGY),
    "gate-network": (
        *COMMON,
        Law("logits_have_their_shape", "pooled features [B, C] become logits [B, outputs]", "networks:shapes"),
        Law("images_are_apart", "in evaluation an image's logits are its own", "networks:apart"),
        Law("macs_are_counted", "`.macs` is what torch counts", "networks:counted"),
        Law("head_sets_the_start", "`.head` is the last linear map", "networks:head"),
        *INSIDE,
    ),
    "split": (
        *COMMON,
        Law("sizes_add_up", "group sizes are whole, positive and add up to the batch", "splits:sizes"),
        Law("generator_decides", "equal generators give equal sizes, and no other is touched", "splits:replays"),
        *INSIDE,
    ),
    "data-source": (
        *COMMON,
        Law("items_are_images", "images have the stated size and channels, labels are in range", "sources:items"),
        Law("parts_agree", "training images and their calibration twins are in one order", "sources:parts"),
        Law("loading_repeats", "loading twice gives the same data and fingerprint", "sources:repeats"),
        Law("augmentation_replays", "augmentation depends on seed, epoch and index alone", "sources:replays"),
    ),
    "backbone": (
        Law("registers_without_torch", "listing plugins stays fast", "common:registers"),
        Law("timm_makes_it", "timm builds it by its name once it is imported", "backbones:made"),
        Law("units_are_found", "some of it can be pruned or gated", "backbones:units"),
        Law("removal_is_exact", "masking and removing give the same logits and costs", "backbones:exact"),
    ),
}
"""The laws of each kind, in the order of their tests. Gate networks and splits are tried inside `usdc-dynamic` too."""
