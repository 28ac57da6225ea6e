"""Every attack of the table on what usdcore reads; docs/safety.md is made of the same table."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from attacks import HOSTILE, LOST, Attack, made, run
from attacks.model import loads
from attacks.page import PATH, text
from trying import try_out

from usdcore.construct import FORBIDDEN


@pytest.fixture(scope="module", autouse=True)
def _prepared() -> None:
    """What attacks start from is made before the clock runs."""
    made.model_bytes()
    run.finished()
    torch.zeros(1)


@pytest.mark.parametrize("attack", HOSTILE, ids=lambda a: f"{a.part}: {a.name}")
def test_attack(attack: Attack, tmp_path: Path) -> None:
    try_out(attack, tmp_path)


def test_what_every_attack_starts_from_is_good(tmp_path: Path) -> None:
    loads(tmp_path)


def test_the_arguments_that_load_are_those_of_timms_factories() -> None:
    assert {"pretrained", "checkpoint_path", "pretrained_cfg", "pretrained_cfg_overlay", "cache_dir"} <= FORBIDDEN
    assert {"img_size", "in_chans", "depth", "embed_dim", "qk_norm"}.isdisjoint(FORBIDDEN)


def test_the_page_is_current() -> None:
    assert PATH.read_text() == text(), "docs/safety.md is old: python -m tests.attacks"


def test_no_attack_is_listed_twice() -> None:
    names = [(attack.part, attack.name) for attack in (*HOSTILE, *LOST)]
    assert len(names) == len(set(names))
