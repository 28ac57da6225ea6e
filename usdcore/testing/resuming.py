"""The law about being broken off: in a phase, and between two."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from torch import Tensor

from usdcore.testing.laws import Broken
from usdcore.testing.trial import Trial, written

if TYPE_CHECKING:
    from usdcore.testing.subject import Subject


def resumes(subject: Subject) -> None:
    """A phase that goes on from its middle in a new process, and a next phase that begins in one, come to the same
    plan, weights and state as an unbroken run.
    """
    name, middle = subject.models[0], subject.steps // 2
    whole = Trial(subject, name).begin().train(0, middle)
    saved = whole.state()
    whole.train(middle)
    broken = Trial(subject, name).begin().load(saved).train(middle)
    _require_equal(whole, broken, f"after {subject.steps} steps, broken off after {middle}")
    whole.end()
    broken.end()
    _require_equal(whole, broken, "after a phase that was broken off")
    kept = whole.between()
    whole.begin().train(0, 2)
    later = Trial(subject, name).go_on(kept).begin().train(0, 2)
    _require_equal(whole, later, "in a second phase, broken off before it")


def _require_equal(whole: Trial, broken: Trial, when: str) -> None:
    do = "state_dict() must give all that later steps depend on, and load_state_dict() take it"
    if whole.session.plan != broken.session.plan:
        raise Broken(whole.where, f"the run that went on decided otherwise, {when}", do)
    first, second = (written(_state(trial), trial.where) for trial in (whole, broken))
    place = difference(first, second)
    if place:
        raise Broken(whole.where, f"{place} is not what it is in the unbroken run, {when}", do)


def _state(trial: Trial) -> dict[str, Any]:
    strategies = {strategy.config.use: strategy.state_dict() for strategy in trial.strategies}
    return {"model": trial.session.model.state_dict(), "state of": strategies}


def difference(a: Any, b: Any, place: str = "") -> str:
    """Where two trees of tensors, numbers and texts first differ; empty where they do not."""
    if isinstance(a, Tensor) and isinstance(b, Tensor):
        return "" if a.shape == b.shape and a.equal(b) else place
    if type(a) is not type(b):
        return place or "its type"
    if isinstance(a, dict):
        if list(a) != list(b):
            return f"{place} (its keys)".strip()
        return next((found for key in a if (found := difference(a[key], b[key], f"{place} {key}".strip()))), "")
    if isinstance(a, list | tuple):
        if len(a) != len(b):
            return f"{place} (its length)".strip()
        pairs = enumerate(zip(a, b, strict=True))
        return next((found for i, (x, y) in pairs if (found := difference(x, y, f"{place} {i}".strip()))), "")
    return "" if a == b else place
