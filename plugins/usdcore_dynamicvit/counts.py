"""How many patch tokens are left behind each place."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

from usdcore.errors import UsdcoreError
from usdcore.tokens.prices import at, token_prices
from usdcore_dynamicvit.predictor import macs_per_token

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from usdcore.strategy import Attachment
    from usdcore.tokens.prices import Price
    from usdcore.units.types import BlockUnit


#: How far below the budget tokens alone may end, as a share of the dense model: as far as a run may.
TOLERANCE = 0.005


@dataclass(frozen=True)
class Stream:
    """The blocks that follow each place, and the stream that runs through all of them."""

    spans: tuple[tuple[BlockUnit, ...], ...]
    width: int
    prefix: int
    patches: int


def find_stream(site: Attachment, places: tuple[int, ...] | None) -> Stream:
    """The model's blocks by place. Errors: places that are not there, blocks that are no single stream of tokens."""
    blocks = site.units.blocks
    depth = len(blocks)
    starts = places or tuple(sorted({depth * quarter // 4 for quarter in (1, 2, 3)} - {0}))
    if not starts or starts[-1] >= depth:
        wanted = f"places {list(starts)}" if starts else "a quarter, half and three quarters of its depth"
        msg = f"dynamicvit.places: {type(site.model).__name__} has {depth} blocks, numbered from 0, so not {wanted}"
        raise UsdcoreError(f"{msg}; name others")
    after = blocks[starts[0] :]
    for block in after:
        if block.num_tokens is None or (block.num_tokens, block.width) != (after[0].num_tokens, after[0].width):
            msg = f"dynamicvit: {block.name} has not the same tokens [B, N, C] as {after[0].name}: "
            raise UsdcoreError(msg + "tokens are dropped from one stream that runs from the first place to the end")
    ends = (*starts[1:], depth)
    spans = tuple(blocks[start:end] for start, end in zip(starts, ends, strict=True))
    prefix = site.prefix_tokens(after[0])
    assert after[0].num_tokens is not None
    return Stream(spans, after[0].width, prefix, after[0].num_tokens - prefix)


def by_ratio(patches: int, ratio: float, num_places: int) -> tuple[int, ...]:
    """floor(patches * ratio^s) tokens behind place s = 1, 2, ..., at least one."""
    # The product may come out just below the whole number that it is: 10 * 0.7 ** 1.
    return tuple(max(1, math.floor(patches * ratio**s + 1e-6)) for s in range(1, num_places + 1))


def cost_by_counts(site: Attachment, stream: Stream) -> Callable[[Sequence[int]], int]:
    """What the model executes per image in MACs, predictors included, as a function of the tokens behind each place.

    It is known without data, as every image keeps equally many.
    """
    found: dict[object, list[Price]] = {}
    spans = [[price for block in span for price in _prices(site, block, found)] for span in stream.spans]
    others = site.units.macs - sum(branch.macs for span in stream.spans for block in span for branch in block.branches)
    each = macs_per_token(stream.width)

    def cost(counts: Sequence[int]) -> int:
        own = [at(price, n + stream.prefix) for span, n in zip(spans, counts, strict=True) for price in span]
        return others + sum(own) + each * (stream.patches + sum(counts[:-1]))

    return cost


def _prices(site: Attachment, block: BlockUnit, found: dict[object, list[Price]]) -> list[Price]:
    """Of a block's branches; those of a block that is built like one that was `found` are the same."""
    inside = [unit for unit in site.units.all if unit.branch is not None and unit.branch.name in block.units]
    groups = [(g.kind, g.size, g.own_macs, g.macs_per_pair) for unit in inside for g in unit.groups]
    build = (tuple((branch.macs, branch.params) for branch in block.branches), tuple(groups))
    if build not in found:
        prices = token_prices(site.model, site.units, [block])
        found[build] = [prices["branch", name] for name in block.units]
    return found[build]


def by_budget(site: Attachment, stream: Stream) -> tuple[int, ...]:
    """The counts of the largest ratio that the budget allows, and then token by token what still fits.

    Errors: a budget that is not in MACs, or that so few tokens only meet from afar.
    """
    budget, places = site.budget, len(stream.spans)
    if budget.metric != "macs":
        msg = f"dynamicvit.keep_ratio: fewer tokens save no {budget.metric}; state a ratio, or a budget in macs"
        raise UsdcoreError(msg)
    cost, target = cost_by_counts(site, stream), budget.target * site.dense_total
    low, high = 0.0, 1.0
    for _ in range(40):
        middle = (low + high) / 2
        is_low = cost(by_ratio(stream.patches, middle, places)) <= target
        low, high = (middle, high) if is_low else (low, middle)
    counts = _filled(by_ratio(stream.patches, low, places), stream.patches, lambda counts: cost(counts) <= target)
    if target - cost(counts) > TOLERANCE * site.dense_total and counts[-1] < stream.patches:
        msg = (
            f"dynamicvit.keep_ratio: of {stream.patches} patches each weighs so much that the next {budget.metric} "
            f"below {budget.target:g} are {cost(counts) / site.dense_total:.4f} of the dense model: ask for these, or "
            f"state keep_ratio beside a strategy that prunes the rest"
        )
        raise UsdcoreError(msg)
    return counts


def _filled(counts: tuple[int, ...], patches: int, fits: Callable[[Sequence[int]], bool]) -> tuple[int, ...]:
    """One token more at a place, as long as that fits; never more than at the place before."""
    is_full = False
    while not is_full:
        is_full = True
        for place in range(len(counts)):
            more = (*counts[:place], counts[place] + 1, *counts[place + 1 :])
            if more[place] <= (more[place - 1] if place else patches) and fits(more):
                counts, is_full = more, False
    return counts
