"""`random-gates`: branches skipped at one rate, at random.

Shape legend: B images of a batch, S gated branches.
"""

from __future__ import annotations

import math
from importlib.metadata import version
from typing import TYPE_CHECKING, Literal

import torch
from pydantic import BaseModel, ConfigDict, Field, ValidationError

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


class GateRecord(BaseModel):
    """What an attach record of this plugin holds."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    sites: tuple[str, ...] = Field(min_length=1, max_length=10_000)
    rate: float = Field(gt=0, lt=1)
    seed: int
    scope: Literal["batch", "sample"]
    threshold: float = Field(allow_inf_nan=False)


class RandomGate(Gate):
    """All branches of a model: each is on with the probability sigmoid(logit of the rate - threshold)."""

    def __init__(self, stated: GateRecord) -> None:
        super().__init__()
        self.here: Tensor
        self.sites = stated.sites
        self.stated = stated
        self.scope: Scope = stated.scope
        self.threshold = stated.threshold
        self.register_buffer("here", torch.zeros(0), persistent=False)  # where the gate is

    def draw(self, x_BNC: Tensor | None, state: ForwardState) -> dict[str, Draw]:
        """Anew in every forward: in evaluation the same for the same seed and number of the forward; in training from
        torch's generator, which each step seeds, so that a run that is broken off goes on with the same draws.
        """
        numbered = torch.Generator().manual_seed(self.stated.seed * 1_000_003 + state.tick)
        generator = torch.default_generator if self.training else numbered
        rows = state.batch_size if self.training or self.scope == "sample" else 1
        uniform_BS = torch.rand(max(rows, 1), len(self.sites), generator=generator)
        share = 1 / (1 + math.exp(min(700.0, self.threshold - math.log(self.stated.rate / (1 - self.stated.rate)))))
        keep_BS = (uniform_BS < share).float().to(self.here.device)
        return {site: Draw(keep_BS[0, i] if rows <= 1 else keep_BS[:, i]) for i, site in enumerate(self.sites)}


class RandomGates(Strategy):
    """Learns nothing; the model learns to do with what is left."""

    def __init__(self, config: RandomGatesConfig) -> None:
        super().__init__(config)

    def attach(self, site: Attachment) -> None:
        """One gate for all branches. Errors: a budget that no rate meets."""
        if self.gates:
            return
        names = self._wanted(site.units)
        stated = GateRecord(
            sites=names, rate=_rate(site, names), seed=self.config.seed, scope=_scope(site), threshold=0.0
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
        try:
            return RandomGate(GateRecord.model_validate(record.config))
        except ValidationError as error:
            first = error.errors(include_url=False)[0]
            place = ".".join(str(part) for part in first["loc"])
            msg = f"the plan's gate at {record.site} can't be built: {place}: {first['msg']}"
            raise UsdcoreError(msg) from None

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
