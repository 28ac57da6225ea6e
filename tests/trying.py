"""How an attack is tried: it must end as the table says, soon, in little memory, and leave nothing behind."""

from __future__ import annotations

import re
import resource
import sys
import time
from pathlib import Path

import pytest
from attacks import REFUSED, Attack

from usdcore.errors import UsdcoreError

SECONDS, MEGABYTES = 1.0, 300
TO_DO = re.compile(
    r"\b(remove|make|made|fetch|give|name|choose|install|check|correct|change|convert|change|use|mend|wait|save|write)\b"
    r"|did you mean|valid:|pip install|writes it again|the recipe is that of another run|a recipe is far|is no recipe",
    re.IGNORECASE,
)
WHERE = re.compile(
    r"[\w.]+\.(safetensors|pth|json|jsonl|yaml)|figures|checkpoints|/x\b|claims|blocks\.\d|mine "
    r"|name a package|a module called"
)


def resident() -> int:
    """The most memory that this process ever held, in MB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // (1024 if sys.platform == "linux" else 2**20)


def try_out(attack: Attack, place: Path) -> None:
    """Once more if it took long: the machine may have been busy."""
    if _try_once(attack, place / "1") > SECONDS:
        assert _try_once(attack, place / "2") < SECONDS


def _try_once(attack: Attack, place: Path) -> float:
    place.mkdir()
    memory, started = resident(), time.process_time()
    if attack.outcome == REFUSED:
        with pytest.raises(UsdcoreError) as refusal:
            attack.act(place)
        text = str(refusal.value)
        assert "\x1b" not in text
        assert len(text) < 2000
        assert WHERE.search(text), text
        assert TO_DO.search(text), text
    else:
        attack.act(place)
    seconds = time.process_time() - started
    assert resident() - memory < MEGABYTES
    left = {path.name for path in place.rglob("*")}
    assert "pwned" not in left
    assert not [name for name in left if name.endswith(".aside")]
    return seconds
