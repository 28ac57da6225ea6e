"""The law about company: beside a built-in strategy it works, or is refused in words."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from usdcore.counting import counted_macs
from usdcore.errors import UsdcoreError
from usdcore.testing.laws import Broken, NotTried
from usdcore.testing.models import batch, first_again
from usdcore.testing.subject import made
from usdcore.testing.trial import Trial

if TYPE_CHECKING:
    from usdcore.strategy import Strategy
    from usdcore.testing.subject import Subject

OPTIONS: dict[str, dict[str, Any]] = {
    "usdc-dynamic": {"gate_network": "G1", "init_logit": 0.5},
    "uvc": {"within": 10.0},
}
"""Of the built-in ones, so that they do something in few steps."""


def composes(subject: Subject, other: str) -> None:
    """Named first or second beside a built-in strategy: both are refused because of a site at which they do not
    compose, or both act for a phase and what they decide costs what is counted.
    """
    if other == subject.name:
        raise NotTried("it is that strategy itself")
    refusals = [_refusal(subject, other, is_first) for is_first in (True, False)]
    if (refusals[0] is None) != (refusals[1] is None):
        where = f"{subject.where}, beside {other}"
        what = f"in one order they are refused and in the other not: {refusals[0] or refusals[1]}"
        raise Broken(where, what, "name every site in attach(), by site.gate() or site.decides()")
    if refusals[0] is None:
        _act(Trial(subject, subject.models[0], _pair(subject, other, is_first=True)), other)


def _pair(subject: Subject, other: str, is_first: bool) -> list[Strategy]:
    pair = [subject.strategy(), made(other, **OPTIONS.get(other, {}))]
    return pair if is_first else pair[::-1]


def _refusal(subject: Subject, other: str, is_first: bool) -> str | None:
    trial = Trial(subject, subject.models[0], _pair(subject, other, is_first))
    try:
        trial.attach()
    except UsdcoreError as error:
        if "do not both declare that they compose" in str(error):
            return str(error)
        raise NotTried(f"they were not attached: {error}") from None
    return None


def _act(trial: Trial, other: str) -> None:
    where = f"{trial.where}, beside {other}"
    trial.attach()
    try:
        trial.train()
        trial.session.end_phase(trial.calibration)
    except UsdcoreError as error:
        do = (
            "name loss terms after your plugin, share one by ctx.claim(term, options), and decide only about your sites"
        )
        raise Broken(where, str(error), do) from None
    images = batch(6, 4)[0]
    first_again(trial.session.model)
    said = trial.session.execution(lambda: iter([images])).macs * len(images)
    first_again(trial.session.model)
    count = counted_macs(trial.session.model.eval(), images)
    if round(said) != count:
        what = f"the cost says {round(said)} MACs for {len(images)} images, and torch counts {count}"
        raise Broken(where, what, "factors at one site multiply: `keep` must be what your gate alone decides")
