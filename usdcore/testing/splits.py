"""Laws about splits by themselves; inside `usdc-dynamic` they are tried as a strategy is."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from usdcore.testing.laws import Broken

if TYPE_CHECKING:
    from usdcore.testing.subject import Subject

BATCHES = (1, 2, 3, 8, 17, 64, 256)
"""Batch sizes to try."""


def sizes(subject: Subject) -> None:
    """For every batch size the groups are lists of positive whole numbers that add up."""
    split = subject.load()(subject.config())
    for size in BATCHES:
        found = split.sizes(size, torch.Generator().manual_seed(size))
        where = f"{subject.where}, for a batch of {size}"
        if not isinstance(found, list) or any(type(group) is not int or group < 1 for group in found):
            raise Broken(where, f"sizes() gives {found!r}", "give a list of whole numbers of at least 1")
        if sum(found) != size:
            raise Broken(where, f"the groups {found} hold {sum(found)} images", "every image is in one group")


def replays(subject: Subject) -> None:
    """Equal generators give equal sizes, from one object and from another; torch's own generator is left alone."""
    for size in BATCHES:
        torch.manual_seed(size)
        before = torch.get_rng_state()
        drawn = []
        for split in (subject.load()(subject.config()), subject.load()(subject.config())):
            drawn += [split.sizes(size, torch.Generator().manual_seed(7)) for _ in range(2)]
        where = f"{subject.where}, for a batch of {size}"
        if any(found != drawn[0] for found in drawn):
            what = f"one seed gives {drawn[0]} and {next(found for found in drawn if found != drawn[0])}"
            raise Broken(where, what, "sizes() may depend on its arguments and the options alone")
        if not torch.equal(before, torch.get_rng_state()):
            raise Broken(where, "it draws from torch's global generator", "draw with generator=generator")
