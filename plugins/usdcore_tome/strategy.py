"""`tome`: where tokens are merged, how many, and what a plan records of it."""

from __future__ import annotations

import math
from dataclasses import dataclass
from importlib.metadata import version
from typing import TYPE_CHECKING

import numpy as np

from usdcore.errors import UsdcoreError
from usdcore.plans import TOKENS, Attach
from usdcore.strategy import Attachment, Strategy
from usdcore.tokens.prices import token_prices
from usdcore_tome.gate import Merge, MergeRecord
from usdcore_tome.schedule import Costs, solve, spread

if TYPE_CHECKING:
    from usdcore.tokens.prices import Price
    from usdcore.units.types import BlockUnit, IntArray, Units
    from usdcore_tome.config import TomeConfig

#: How far below the budget a stated r may end, as a share of the dense model: a run's own promise.
BELOW = 0.005


@dataclass(frozen=True)
class Place:
    """Where tokens are merged: before the branch `ffn` of a block, by keys of `width` of the attention `after`."""

    block: BlockUnit
    ffn: str
    after: str
    width: int


class Tome(Strategy):
    """One gate for each block that merges. Nothing is learned: training, where there is any, runs on merged tokens."""

    composes = frozenset()

    def __init__(self, config: TomeConfig) -> None:
        super().__init__(config)

    def attach(self, site: Attachment) -> None:
        """Merging of an earlier phase goes on as it is. Errors: a model without attention followed by an FFN, a
        schedule of another length, a budget out of reach, a stated r that saves more than the budget asks for.
        """
        if self.gates:
            return
        places = _places(site.units)
        costs = _costs(site, places)
        counts, merged = costs.entering(self._schedule(site, costs))
        for place, tokens, r in zip(places, counts, merged, strict=True):
            if r:
                stated = MergeRecord(
                    r=r,
                    tokens=tokens,
                    prefix=costs.prefix,
                    width=place.width,
                    after=place.after,
                    proportional=self.config.proportional,
                )
                site.gate(place.ffn + TOKENS, Merge(place.ffn + TOKENS, stated))

    def records(self, gone: set[str], rates: dict[str, float], settle: bool) -> list[Attach]:
        """Merging stays. What a branch that goes had to merge, the next one merges, so that as many are left in the
        end.
        """
        found, more = [], 0
        for site, gate in self.gates.items():
            assert isinstance(gate, Merge)
            stated = gate.stated
            if site.removesuffix(TOKENS) in gone:
                more += stated.r
                continue
            tokens = stated.tokens + more
            r = min(stated.r + more, (tokens - stated.prefix) // 2)
            more += stated.r - r
            found.append(self._record(site, stated.model_copy(update={"r": r, "tokens": tokens})))
        return found

    @classmethod
    def rebuild(cls, record: Attach) -> Merge:
        """The gate that an attach record states. Errors: a record that is not this plugin's, a site without tokens."""
        if not record.site.endswith(TOKENS):
            msg = f"tokens are merged where they enter a branch, and {record.site} is no such site"
            raise UsdcoreError(msg)
        return Merge(record.site, record.read(MergeRecord))

    def _record(self, site: str, stated: MergeRecord) -> Attach:
        return Attach(
            site=site,
            plugin=self.config.use,
            distribution="usdcore",
            version=version("usdcore"),
            config=stated.model_dump(mode="json"),
        )

    def _schedule(self, site: Attachment, costs: Costs) -> IntArray:
        """How many tokens each place merges, [L]."""
        r, places = self.config.r, len(costs.widths)
        if r is None:
            return self._solved(site, costs)
        if isinstance(r, list) and len(r) != places:
            msg = f"tome.r states {len(r)} blocks and this model has {places} that can merge: state r for each of them"
            raise UsdcoreError(msg)
        found = np.array(r) if isinstance(r, list) else spread(r * places, places, self.config.inflection)
        left = float(costs.macs(found)) / site.dense_total
        if site.budget.metric == "macs" and left < site.budget.target - BELOW:
            msg = (
                f"tome.r leaves {left:.4f} of the dense model's MACs and the budget asks for {site.budget.target:g}: "
                f"set budget.macs to {_up(left):g} or less, or merge fewer tokens"
            )
            raise UsdcoreError(msg)
        return found

    def _solved(self, site: Attachment, costs: Costs) -> IntArray:
        if site.budget.metric != "macs" and self.config.target is None:
            msg = "tome.r: null is solved for a budget of MACs, and this recipe has another: state r or tome.target"
            raise UsdcoreError(msg)
        target = self.config.target or site.budget.target
        found = solve(costs, target * _dense_macs(site), self.config.inflection)
        if found is None:
            most = np.full(len(costs.widths), costs.tokens)
            least = float(costs.macs(most)) / _dense_macs(site)
            msg = (
                f"tome: {target:g} of the dense MACs can't be reached by merging, which leaves at least {_up(least):g} "
                f"(half of the tokens in every block): ask for at least that, or let another strategy save the rest "
                f"and state tome.target"
            )
            raise UsdcoreError(msg)
        return found


def _up(share: float) -> float:
    """Rounded, so that a budget of it can be met."""
    return math.ceil(share * 1e4) / 1e4


def _dense_macs(site: Attachment) -> int:
    """Of the dense model, or, where the budget is none of MACs, of the model as it is."""
    return site.dense_total if site.budget.metric == "macs" else site.units.macs


def _places(units: Units) -> list[Place]:
    """Every FFN that follows an attention in its block. Errors: there is none, with what the blocks have instead."""
    attention = {unit.branch.name: unit for unit in units.attention if unit.branch}
    ffn = {unit.branch.name for unit in units.ffn if unit.branch}
    found = []
    for block in units.blocks:
        for before, branch in zip(block.units, block.units[1:], strict=False):
            if before in attention and before not in ffn and branch in ffn - attention.keys():
                found.append(Place(block, branch, before, attention[before].qk_dim))
    if not found:
        shown = f"{units.blocks[0].name} has {', '.join(units.blocks[0].units) or 'none'}" if units.blocks else "none"
        msg = (
            f"tome merges between an attention and the FFN that follows it, and no block of this model has the two as "
            f"branches in this order ({shown})"
        )
        raise UsdcoreError(msg)
    return found


def _costs(site: Attachment, places: list[Place]) -> Costs:
    """What schedules cost. Errors: blocks of several streams, a model that does not tell its prefix."""
    first = places[0].block
    blocks = site.units.blocks[site.units.blocks.index(first) :]
    prefix = site.prefix_tokens(first)
    for block in blocks:
        if (block.num_tokens, block.width) != (first.num_tokens, first.width):
            msg = (
                f"tome: {block.name} has a stream of {block.num_tokens} tokens of width {block.width}, and "
                f"{first.name} one of {first.num_tokens} of width {first.width}: what lies between needs tokens in "
                f"their places"
            )
            raise UsdcoreError(msg)
    prices = token_prices(site.model, site.units, blocks)
    stages: list[list[Price]] = [[]]
    ffn = {place.ffn for place in places}
    for branch in (branch for block in blocks for branch in block.branches):
        if branch.name in ffn:
            stages.append([])
        stages[-1].append(prices["branch", branch.name])
    fixed = site.units.macs - sum(branch.macs for block in blocks for branch in block.branches)
    sums = tuple((sum(p[0] for p in own), sum(p[1] for p in own), sum(p[2] for p in own)) for own in stages)
    assert first.num_tokens is not None
    return Costs(fixed, sums, tuple(place.width for place in places), first.num_tokens, prefix)
