"""What one skipping forward of a batch multiplied and added, from the decisions that were made: exact."""

from __future__ import annotations

from functools import partial
from types import MappingProxyType
from typing import TYPE_CHECKING

import numpy as np

from usdcore.costs import Part, Tree, mean_price

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping

    from torch import Tensor

    from usdcore.tokens.prices import Prices
    from usdcore.units.types import Units


def batch_macs(
    units: Units,
    decisions: Mapping[str, Tensor],
    gate_macs: int,
    batch_size: int,
    counts: Mapping[str, Tensor] = MappingProxyType({}),
    prices: Prices = MappingProxyType({}),
    partly: Collection[str] = (),
) -> int:
    """Exact MACs of one skipping forward of a batch: what torch's FLOP counter shows over it, halved.

    `decisions`: 0 or 1 per branch, [] for the whole batch or [B]. Masked group entries are computed, so they count, but
    for those of the groups `partly` ([B, n]). `counts`: how many tokens branches were given, [] or [B], where it was
    not all; `prices` are what they cost then.
    """
    tree = Tree(units, "macs", prices)
    constant = units.constant_macs - sum(part.constant for part in tree.parts)
    total = (tree.fixed - constant + gate_macs) * batch_size + constant
    for part in tree.parts:
        keep, count = decisions.get(part.branch or ""), counts.get(part.branch or "")
        own = {level.group.name: decisions[level.group.name] for level in part.levels if level.group.name in partly}
        if count is not None or own:
            total += _each_image(tree, part, (keep, count, own), batch_size)
            continue
        if keep is None:
            rows = batch_size
        elif keep.ndim == 0:
            rows = batch_size * int(keep.item())
        else:
            rows = int(np.count_nonzero(keep.detach().cpu().numpy()))
        total += rows * (part.whole - part.constant) + (part.constant if rows else 0)
    return total


def _each_image(
    tree: Tree, part: Part, given: tuple[Tensor | None, Tensor | None, Mapping[str, Tensor]], batch_size: int
) -> int:
    """MACs of a branch for a batch, image by image: where it is on, for its tokens and its entries."""
    keep, count, partly = given
    on = [1] * batch_size if keep is None else (keep.detach() != 0).expand(batch_size).tolist()
    tokens = None if count is None else count.detach().round().long().expand(batch_size).tolist()
    kept = {name: (own.detach() != 0).sum(-1).tolist() for name, own in partly.items()}
    runs = {n: part.priced(partial(mean_price, tree.prices, (n, n * n))) for n in set(tokens or ())}
    total = 0
    for image in (i for i in range(batch_size) if on[i] and (tokens is None or tokens[i])):
        run = part if tokens is None else runs[tokens[image]]
        total += run.decided({name: numbers[image] for name, numbers in kept.items()})
    return total
