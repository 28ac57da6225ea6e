"""`random-gates`: branches skipped at one rate, at random.

Shape legend: B images of a batch, S gated branches.
"""

from __future__ import annotations

import math
from importlib.metadata import version
from typing import TYPE_CHECKING, Literal

import torch
from pydantic import BaseModel, ConfigDict, Field

from usdcore.costs import Tree
from usdcore.errors import UsdcoreError
from usdcore.gates import Draw, ForwardState, Gate, Scope
from usdcore.plans import Attach
from usdcore.strategy import Attachment, Strategy

if TYPE_CHECKING:
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
    rate: float = Field(gt=0, lt=1)
    seed: int
    scope: Literal["batch", "sample"]
    threshold: float = Field(allow_inf_nan=False)


class RandomGate(Gate):
    """All branches of a model: each is on with the probability sigmoid(logit of the rate - threshold)."""

    def __init__(self, stated: GateRecord) -> None:
        super().__init__()
        self.sites, self.tap = stated.sites, stated.tap
        self.stated = stated
        self.scope: Scope = stated.scope
        self.threshold = stated.threshold

    def draw(self, x_BNC: Tensor | None, state: ForwardState) -> dict[str, Draw]:
        """In training anew each time, from torch's generator, which each step seeds; in evaluation an image, or a
        batch, has the same draws whenever it comes: they are spread by what its stream adds up to.
        """
        assert x_BNC is not None
        own = self.stated
        share = 1 / (1 + math.exp(min(700.0, self.threshold - math.log(own.rate / (1 - own.rate)))))
        if self.training:
            uniform_BS = torch.rand(x_BNC.shape[0], len(self.sites), device=x_BNC.device)
        else:
            mean_B = x_BNC.detach().float().mean((1, 2))
            mean_B = mean_B if self.scope == "sample" else mean_B.mean(0, keepdim=True)
            steps_S = SPREAD * torch.arange(own.seed + 1, own.seed + 1 + len(self.sites), device=x_BNC.device)
            uniform_BS = (mean_B[:, None].double() * 1e5 * (1 + steps_S)) % 1
        keep_BS = (uniform_BS < share).to(x_BNC.dtype)
        if self.scope == "batch" and not self.training:
            return {site: Draw(keep_BS[0, i]) for i, site in enumerate(self.sites)}
        return {site: Draw(keep_BS[:, i]) for i, site in enumerate(self.sites)}


class RandomGates(Strategy):
    """Learns nothing; the model learns to do with what is left."""

    def __init__(self, config: RandomGatesConfig) -> None:
        super().__init__(config)

    def attach(self, site: Attachment) -> None:
        """One gate for all branches. Errors: a budget that no rate meets."""
        if self.gates:
            return
        names = self._wanted(site.units)
        tap = next(block.name for block in site.units.blocks if block.units[0] in names or block.units[-1] in names)
        stated = GateRecord(
            tap=tap, sites=names, rate=_rate(site, names), seed=self.config.seed, scope=_scope(site), threshold=0.0
        )
        site.gate(SITE, RandomGate(stated))

    def records(self, gone: set[str], rates: dict[str, float], settle: bool) -> list[Attach]:
        """The gate stays for the branches that are left."""
        found = []
        for site, gate in self.gates.items():
            assert isinstance(gate, RandomGate)
            names = tuple(name for name in gate.sites if name not in gone)
            stated = gate.stated.model_copy(update={"sites": names, "threshold": gate.threshold})
            if names:
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


def _scope(site: Attachment) -> Literal["batch", "sample"]:
    return "batch" if site.budget.scope == "batch" else "sample"
