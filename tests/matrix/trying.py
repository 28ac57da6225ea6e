"""Try one case of one model and write down what came of each check."""

from __future__ import annotations

import time
import warnings
from collections.abc import Collection
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from usdcore.errors import brief
from usdcore.surgery import shrink

from .checks import ALL, OF_MODEL, OF_TRIAL, Trial, prepare, run
from .subject import Subject

DENSE_FAILS = "the dense model fails it too"


@dataclass
class Outcome:
    """What came of a case. `checks` are numbers or words, `problems` the checks that failed, with the message.

    `asked` counts the groups and branches that the case names, `shrunk` those that were cut. `refused` are the others
    with their reasons, but for `single`: groups of one entry. `seconds` are the processor's.
    """

    asked: int = 0
    shrunk: int = 0
    single: int = 0
    refused: dict[str, str] = field(default_factory=dict)
    checks: dict[str, Any] = field(default_factory=dict)
    problems: dict[str, str] = field(default_factory=dict)
    seconds: float = 0.0

    @property
    def verdict(self) -> str:
        """passed, partly (what could be cut is right), refused (nothing could), or failed."""
        if self.problems:
            return "failed"
        if not self.shrunk:
            return "refused"
        return "partly" if self.refused else "passed"


def attempt(subject: Subject, case: str, folder: Path, checks: Collection[str] = ALL) -> Outcome:
    """One case. Whatever goes wrong becomes a problem under the name of its check."""
    started = time.process_time()
    asked = prepare(subject, case)
    count = len(asked.names) + len(asked.refused)
    outcome = Outcome(count, len(asked.names), len(asked.single), asked.refused)
    if asked.names:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            _check(subject, Trial, outcome, (case, asked, folder), checks)
    outcome.seconds = round(time.process_time() - started, 2)
    return outcome


def _check(
    subject: Subject, kind: type[Trial], outcome: Outcome, rest: tuple[Any, ...], checks: Collection[str]
) -> None:
    case, asked, folder = rest
    try:
        small = shrink(subject.model, asked.plan, subject.example)
        trial = kind(subject, case, asked, small, folder)
        outcome.checks["forward"] = tuple(trial.out.shape)
    except Exception as error:
        outcome.problems["shrink"] = words(error)
        return
    for name, check in OF_TRIAL.items():
        if name in checks:
            try:
                outcome.checks[name] = check(trial)
            except Exception as error:
                outcome.problems[name] = words(error)
    for name, of_model in OF_MODEL.items():
        if name not in checks:
            continue
        try:
            outcome.checks[name] = of_model(small, subject, trial.out)
        except Exception as error:
            if _dense_fails(subject, name):
                outcome.checks[name] = DENSE_FAILS
            else:
                outcome.problems[name] = words(error)


def _dense_fails(subject: Subject, name: str) -> bool:
    try:
        OF_MODEL[name](subject.model, subject, run(subject.model, subject.images))
    except Exception:
        return True
    return False


def words(error: Exception) -> str:
    """An error in one line."""
    return brief(f"{type(error).__name__}: {error}".replace("\n", " "), 300)
