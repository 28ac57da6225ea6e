"""`random-gates`: branches or blocks skipped at random, all at one rate or each at its own.

Shape legend: B images of a batch, S gated sites.
"""

from __future__ import annotations

import math
from importlib.metadata import version
from typing import TYPE_CHECKING, Annotated, Any, Literal

import torch
from pydantic import BaseModel, ConfigDict, Field, model_validator

from usdcore.costs import Tree
from usdcore.deciding import decided
from usdcore.errors import UsdcoreError, nearest
from usdcore.gates import Draw, ForwardState, Gate, Scope
from usdcore.plans import Attach
from usdcore.strategy import Attachment, Strategy

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch import Tensor

    from usdcore.units.types import Units
    from usdcore_random.config import RandomGatesConfig

SITE = "branches"

#: The golden ratio, whose multiples spread evenly over 0 to 1.
SPREAD = (5**0.5 - 1) / 2


class GateRecord(BaseModel):
    """What an attach record of this plugin holds."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    sites: tuple[str, ...] = Field(min_length=1, max_length=10_000)
    tap: str = Field(min_length=1, max_length=300, description="the block whose stream tells images apart")
    rates: tuple[Annotated[float, Field(gt=0, lt=1)], ...] = Field(description="of each site")
    seed: int
    scope: Literal["batch", "sample"]
    threshold: Annotated[float, Field(allow_inf_nan=False)] | None = Field(description="none: the rates are what runs")

    @model_validator(mode="after")
    def _of_each_site(self) -> GateRecord:
        if len(self.rates) != len(self.sites):
            msg = f"{len(self.rates)} rates for {len(self.sites)} sites"
            raise ValueError(msg)
        return self


class RandomGate(Gate):
    """All gated sites of a model: each is on with the probability sigmoid(logit of its rate - threshold)."""

    logits: Tensor

    def __init__(self, stated: GateRecord) -> None:
        super().__init__()
        self.sites, self.tap = stated.sites, stated.tap
        self.stated = stated
        self.scope: Scope = stated.scope
        self.has_threshold = stated.threshold is not None
        self.threshold = stated.threshold or 0.0
        logits = [math.log(rate / (1 - rate)) for rate in stated.rates]
        self.register_buffer("logits", torch.tensor(logits), persistent=False)

    def draw(self, x_BNC: Tensor | None, state: ForwardState) -> dict[str, Draw]:
        """In training anew each time, from torch's generator, which each step seeds; in evaluation an image, or a
        batch, has the same draws whenever it comes: they are spread by what its stream adds up to.
        """
        assert x_BNC is not None
        shares_S = torch.sigmoid(self.logits - self.threshold)
        if self.training:
            uniform_BS = torch.rand(x_BNC.shape[0], len(self.sites), device=x_BNC.device)
            keep_BS = (uniform_BS < shares_S).to(x_BNC.dtype)
            return {site: Draw(keep_BS[:, i]) for i, site in enumerate(self.sites)}
        mean_B = x_BNC.detach().float().mean((1, 2))
        mean_B = mean_B if self.scope == "sample" else mean_B.mean(0, keepdim=True)
        first = self.stated.seed + 1
        steps_S = SPREAD * torch.arange(first, first + len(self.sites), device=x_BNC.device)
        uniform_BS = (mean_B[:, None].double() * 1e5 * (1 + steps_S)) % 1
        draws = decided((shares_S - uniform_BS).to(x_BNC.dtype), 0.0, self.scope, state)
        return dict(zip(self.sites, draws, strict=True))


class RandomGates(Strategy):
    """Learns nothing; the model learns to do with what is left."""

    def __init__(self, config: RandomGatesConfig) -> None:
        super().__init__(config)
        #: The branches of each block, in the model's order.
        self.blocks: dict[str, list[str]] = {}

    def attach(self, site: Attachment) -> None:
        """One gate for all sites. Errors: a budget that no rate meets; rates of what can't be skipped."""
        self.blocks = {block.name: list(block.units) for block in site.units.blocks}
        if self.gates:
            return
        stated = self.config.rates
        names = self._wanted(site.units) if stated is None else _named(site.units, stated)
        rates = (_rate(site, names),) * len(names) if stated is None else tuple(stated[name] for name in names)
        threshold = 0.0 if stated is None else None
        record = GateRecord(
            tap=self._tap(names),
            sites=names,
            rates=rates,
            seed=self.config.seed,
            scope="batch" if site.budget.scope == "batch" else "sample",
            threshold=threshold,
        )
        site.gate(SITE, RandomGate(record))

    def records(self, gone: set[str], rates: dict[str, float], settle: bool) -> list[Attach]:
        """The gate stays for the branches and blocks that are left."""
        found = []
        for site, gate in self.gates.items():
            assert isinstance(gate, RandomGate)
            own = gate.stated
            left = [i for i, name in enumerate(own.sites) if not gone.issuperset(self.blocks.get(name, [name]))]
            if not left:
                continue
            names = tuple(own.sites[i] for i in left)
            stated = own.model_copy(
                update={
                    "sites": names,
                    "rates": tuple(own.rates[i] for i in left),
                    "tap": self._tap(names),
                    "threshold": gate.threshold if gate.has_threshold else None,
                }
            )
            found.append(
                Attach(
                    site=site,
                    plugin=self.config.use,
                    distribution="usdcore",
                    version=version("usdcore"),
                    config=stated.model_dump(mode="json"),
                )
            )
        return found

    @classmethod
    def rebuild(cls, record: Attach) -> RandomGate:
        """The gate that an attach record states. Errors: a record that is not this plugin's."""
        return RandomGate(record.read(GateRecord))

    def state_dict(self) -> dict[str, Any]:
        """Which branches blocks have: a block whose branches all go has no gate any more."""
        return {"blocks": self.blocks}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """The inverse of `state_dict`."""
        self.blocks = state["blocks"]

    def _tap(self, names: tuple[str, ...]) -> str:
        """The first block in which something is skipped."""
        return next(block for block, inside in self.blocks.items() if {block, *inside} & set(names))

    def _wanted(self, units: Units) -> tuple[str, ...]:
        attention = {unit.branch.name for unit in units.attention if unit.branch}
        names = [
            branch.name
            for block in units.blocks[self.config.keep_first :]
            for branch in block.branches
            if branch.reason is None and (self.config.attention if branch.name in attention else self.config.ffn)
        ]
        if not names:
            msg = "random-gates: no branch of this model can be skipped; `usdcore units` says why"
            raise UsdcoreError(msg)
        return tuple(names)


def _named(units: Units, rates: Mapping[str, float]) -> tuple[str, ...]:
    """The branches and blocks that have rates, in the model's order. Errors: one that is not there or can't be
    skipped, a block beside a branch of its own.
    """
    blocks = {block.name: block for block in units.blocks}
    sites = [name for block in units.blocks for name in (block.name, *block.units)]
    for name in rates:
        if name not in sites:
            msg = f"random-gates.rates: this model has no branch or block {name!r}; {nearest(name, sites)}"
            raise UsdcoreError(msg)
        reason = (blocks.get(name) or units.branches[name]).reason
        if reason is not None:
            msg = f"random-gates.rates: {name} can't be skipped ({reason}); leave it out"
            raise UsdcoreError(msg)
        inside = [branch for branch in blocks[name].units if branch in rates] if name in blocks else []
        if inside:
            msg = f"random-gates.rates: {name} is skipped with all of its branches, {inside[0]} too; name one of them"
            raise UsdcoreError(msg)
    return tuple(name for name in sites if name in rates)


def _rate(site: Attachment, names: tuple[str, ...]) -> float:
    """At which the branches have to run to meet the budget."""
    if site.budget.metric != "macs":
        msg = f"random-gates skip what is computed, and a budget of {site.budget.metric} does not fall by that"
        raise UsdcoreError(f"{msg}: set budget.macs")
    tree = Tree(site.units)
    least, most = (tree.executed(dict.fromkeys(names, rate)) / site.dense_total for rate in (0.0, 1.0))
    rate = (site.budget.target - least) / (most - least)
    if not 0 < rate < 1:
        msg = f"random-gates can execute {least:.4f} to {most:.4f} of the dense MACs, not {site.budget.target:g}"
        raise UsdcoreError(f"{msg}: change the budget, or what they may skip")
    return rate
