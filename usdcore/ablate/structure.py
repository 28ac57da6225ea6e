"""A compressed model that a paper prints layer by layer: the plan that it is, what it costs, how it is drawn."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from usdcore.costs import cost
from usdcore.errors import UsdcoreError
from usdcore.hooks import registry
from usdcore.plans import Drop, Keep, Plan
from usdcore.report.result import KeptAttention, KeptFeedForward, Layer

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from usdcore.ablate.exact import GateCost
    from usdcore.ablate.schema import KeptLayer
    from usdcore.plans import Base
    from usdcore.units.types import AttentionUnit, BlockUnit, FeedForwardUnit, Units

    NetworkCost = Callable[[str, int, int], GateCost]


@dataclass(frozen=True)
class PrintedStructure:
    """`plan` keeps the first entries of each group: which ones they are does not change what the model costs.

    `values` are columns (see `usdcore.ablate.columns`), `layers` what the report's figure draws.
    """

    plan: Plan
    values: dict[str, float]
    layers: tuple[Layer, ...]


@dataclass(frozen=True)
class _Part:
    """One layer of the model with what is printed of it."""

    block: BlockUnit
    attention: AttentionUnit
    ffn: FeedForwardUnit
    printed: KeptLayer

    def records(self) -> list[Keep | Drop]:
        """What goes."""
        found: list[Keep | Drop] = []
        for unit, kind, kept, size in (
            (self.attention, "heads", self.printed.heads, self.attention.num_heads),
            (self.ffn, "hidden", self.printed.hidden, self.ffn.hidden),
        ):
            assert unit.branch is not None
            if kept > size:
                msg = f"{unit.name} has {size} {kind}, so {kept} can't be left of them"
                raise UsdcoreError(msg)
            if kept == 0:
                found.append(Drop(branch=unit.branch.name))
            elif kept < size:
                found.append(Keep(group=f"{unit.name}:{kind}", indices=tuple(range(kept))))
        return found

    def rates(self) -> dict[str, float]:
        """How often each branch that is left runs."""
        assert self.attention.branch is not None
        assert self.ffn.branch is not None
        pairs = ((self.attention.branch.name, self.printed.heads), (self.ffn.branch.name, self.printed.hidden))
        return {
            name: 1.0 if rate is None else rate
            for (name, kept), rate in zip(pairs, self.printed.rates, strict=True)
            if kept
        }

    def drawn(self) -> Layer:
        """As the report's figure wants it."""
        attention_rate, ffn_rate = self.printed.rates
        heads, hidden = self.printed.heads, self.printed.hidden
        return Layer(
            block=self.block.name,
            gate_network=_label(self.printed.network),
            attention=KeptAttention(
                branch=self.attention.name,
                heads=heads,
                heads_dense=self.attention.num_heads,
                rate=attention_rate if heads else None,
            ),
            ffn=KeptFeedForward(
                branch=self.ffn.name, hidden=hidden, hidden_dense=self.ffn.hidden, rate=ffn_rate if hidden else None
            ),
        )


def priced(base: Base, units: Units, layers: Sequence[KeptLayer], network_cost: NetworkCost) -> PrintedStructure:
    """A printed structure on its model: exact costs, at the printed rates.

    Errors: another number of layers than the model has, more entries than there are, an unknown gate network.
    """
    parts = _parts(units, layers)
    plan = Plan(base=base).then(record for part in parts for record in part.records())
    dense, static = cost(units), cost(units, plan)
    rates = {name: rate for part in parts for name, rate in part.rates().items()}
    own = {name: static.macs - cost(units, plan.then([Drop(branch=name)])).macs for name in rates}
    skipped = sum((1 - rate) * own[name] for name, rate in rates.items())
    networks = [
        network_cost(part.printed.network, part.block.width, 2) for part in parts if part.printed.network is not None
    ]
    gate_macs = sum(network.macs for network in networks)
    values: dict[str, float] = {
        "params": static.params + sum(network.params for network in networks),
        "macs": static.macs + gate_macs,
        "executed_macs": static.macs - skipped + gate_macs,
        "static_share": (static.macs + gate_macs) / dense.macs,
        "share": (static.macs - skipped + gate_macs) / dense.macs,
        "block_share": (sum(own.values()) - skipped) / dense.macs,
    }
    if networks:
        values |= {"gate_macs": gate_macs, "gate_flops": sum(network.paper_flops for network in networks)}
    return PrintedStructure(plan, values, tuple(part.drawn() for part in parts))


def _parts(units: Units, layers: Sequence[KeptLayer]) -> list[_Part]:
    attention, ffn = {u.name: u for u in units.attention}, {u.name: u for u in units.ffn}
    whole = []
    for block in units.blocks:
        own = [attention[name] for name in block.units if name in attention]
        forward = [ffn[name] for name in block.units if name in ffn]
        if len(own) == len(forward) == 1 and own[0].branch is not None and forward[0].branch is not None:
            whole.append((block, own[0], forward[0]))
    if len(whole) != len(layers):
        msg = f"{len(layers)} layers are printed, and the model has {len(whole)} with both branches"
        raise UsdcoreError(msg)
    return [_Part(*unit, layer) for unit, layer in zip(whole, layers, strict=True)]


def _label(network: str | None) -> str | None:
    """A gate network as the paper's figure calls it, after its name here."""
    if network is None:
        return None
    kind = registry().entry("gate-network", network).summary.partition(",")[0]
    return f"{network}: {kind}"
