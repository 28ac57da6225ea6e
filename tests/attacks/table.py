"""The table: what is tried, on what, and what must come of it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

REFUSED = "refused"
OLDER = "the state before it is used"
AS_TEXT = "shown as text"
UNTOUCHED = "the other file is untouched"


@dataclass(frozen=True)
class Attack:
    """`act` does it in an empty folder. It raises `UsdcoreError` where the outcome is `REFUSED`; else it returns,
    having checked the outcome itself.
    """

    part: str
    name: str
    act: Callable[[Path], object]
    outcome: str = REFUSED


class Table:
    """Attacks on one part, in the order in which they are added."""

    def __init__(self, part: str) -> None:
        self.part = part
        self.attacks: list[Attack] = []

    def add(self, name: str, act: Callable[[Path], object], outcome: str = REFUSED) -> None:
        self.attacks.append(Attack(self.part, name, act, outcome))

    def __call__(
        self, name: str, outcome: str = REFUSED
    ) -> Callable[[Callable[[Path], object]], Callable[[Path], object]]:
        def keep(act: Callable[[Path], object]) -> Callable[[Path], object]:
            self.add(name, act, outcome)
            return act

        return keep
