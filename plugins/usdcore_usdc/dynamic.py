"""`usdc-dynamic`: per-layer gates that skip MHSA and FFN by the input, with a search among gate networks (USDC Eq. 5,
6, 10, 11).
"""

from __future__ import annotations

from importlib.metadata import version
from typing import TYPE_CHECKING, Any, Literal

import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor, nn

from usdcore.errors import UsdcoreError
from usdcore.hooks import registry
from usdcore.plans import Attach
from usdcore.strategy import Attachment, Decision, ParameterGroup, StepContext, Strategy
from usdcore_usdc.layer_gate import Grouping, LayerGate
from usdcore_usdc.relax import information
from usdcore_usdc.resource import resource_losses

if TYPE_CHECKING:
    from usdcore.units.types import BlockUnit
    from usdcore_usdc.config import DynamicConfig


class GateRecord(BaseModel):
    """What an attach record of this plugin holds: enough to build the gate anew."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    columns: tuple[str | None, ...] = Field(min_length=1, max_length=64)
    width: int = Field(ge=1, le=1_000_000)
    network: dict[str, Any]
    scope: Literal["batch", "sample"]
    threshold: float = Field(allow_inf_nan=False)


class Dynamic(Strategy):
    """One gate network per layer; both decisions of a layer come from the stream that enters it."""

    def __init__(self, config: DynamicConfig) -> None:
        super().__init__(config)
        self.grouping = Grouping(registry().load("split", config.split.use)(config.split), config.shuffle == "layer")

    def attach(self, site: Attachment) -> None:
        """Gates of an earlier phase go on as they are; else every block with a gateable branch gets one."""
        self.budget = site.budget
        self.anneals = not self.gates
        if not self.gates:
            for block in site.units.blocks:
                gate = self._build(block, site)
                if gate is not None:
                    site.gate(block.name, gate)
        self.grouping.decisions = 0
        for gate in self.layer_gates:
            gate.grouping, gate.tau = self.grouping, self.config.tau
            gate.place = slice(self.grouping.decisions, self.grouping.decisions + len(gate.columns))
            self.grouping.decisions = gate.place.stop
            gate.noise = self._noise(0.0)
            gate.gumbel = self.config.relaxation == "gumbel"
        networks = [p for gate in self.layer_gates for p in gate.networks.parameters()]
        choices = [gate.choice for gate in self.layer_gates if gate.choice is not None]
        site.param_group(ParameterGroup(networks, lr=self.config.lr))
        if choices:
            site.param_group(ParameterGroup(choices, lr=self.config.choice_lr))

    @property
    def layer_gates(self) -> list[LayerGate]:
        """The gates now on the model."""
        return [gate for gate in self.gates.values() if isinstance(gate, LayerGate)]

    def begin_step(self, ctx: StepContext) -> None:
        """Move the schedules of the noise and of the search on."""
        for gate in self.layer_gates:
            if gate.choice is not None and ctx.progress >= self.config.commit_at:
                gate.commit()
            gate.noise = self._noise(ctx.progress)

    def losses(self, ctx: StepContext) -> dict[str, Tensor]:
        """Eq. 9's resource term and the reward for information."""
        ramp = self.config.ramp if self.anneals else 0.0
        terms = resource_losses(ctx, self.budget, self.config.resource_weight, ramp)
        seen = [gate.seen for gate in self.layer_gates if gate.seen is not None]
        if self.config.information_weight > 0 and seen:
            informed = information(torch.cat(seen, dim=1), ctx.mean)
            terms["information"] = -self.config.information_weight * informed.mean()
        return terms

    def decide(self) -> Decision:
        """Each layer keeps one network. Which branches the gates never run is for the session to measure."""
        for gate in self.layer_gates:
            if gate.choice is not None:
                gate.commit()
        return Decision()

    def records(self, gone: set[str], rates: dict[str, float], settle: bool) -> list[Attach]:
        """A gate stays for the branches that are left; when settling, not for one that is always on."""
        records = []
        for block, gate in self.gates.items():
            assert isinstance(gate, LayerGate)
            done = gone | ({name for name in gate.sites if rates.get(name) == 1.0} if settle else set())
            columns = tuple(None if name in done else name for name in gate.columns)
            if any(columns):
                records.append(self._record(block, gate, columns))
        return records

    @classmethod
    def rebuild(cls, record: Attach) -> LayerGate:
        """The gate that an attach record states, with fresh weights. Errors: a record that is not this plugin's."""
        stated = record.read(GateRecord)
        name = str(stated.network.get("use"))
        network = record.read(registry().config("gate-network", name), stated.network)
        built = _network(network, stated.width, len(stated.columns))
        gate = LayerGate(record.site, stated.columns, {name: built}, stated.scope)
        gate.threshold = stated.threshold
        gate.width = stated.width
        gate.configs = {name: network}
        return gate

    def state_dict(self) -> dict[str, Any]:
        """Which network each layer has committed to, so that a resumed search has the same modules."""
        return {"committed": {block: g.network_name for block, g in self._by_block() if g.choice is None}}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Commit as the saved run had."""
        for block, gate in self._by_block():
            if gate.choice is not None and block in state["committed"]:
                gate.commit(state["committed"][block])

    def _by_block(self) -> list[tuple[str, LayerGate]]:
        return [(block, gate) for block, gate in self.gates.items() if isinstance(gate, LayerGate)]

    def _noise(self, progress: float) -> float:
        start, end = self.config.noise
        return start + (end - start) * min(1.0, progress) if self.anneals else end

    def _build(self, block: BlockUnit, site: Attachment) -> LayerGate | None:
        kinds = {unit.branch.name: "attention" for unit in site.units.attention if unit.branch}
        wanted = [
            b.name
            for b in block.branches
            if b.reason is None and (self.config.attention if kinds.get(b.name) else self.config.ffn)
        ]
        if not wanted:
            return None
        configs = self.config.space if self.config.gate_network == "search" else [self.config.gate_network]
        by_name = {config.use: config for config in configs}
        if len(by_name) < len(configs):
            msg = "usdc-dynamic: space names one gate network twice; candidates are told apart by their names"
            raise UsdcoreError(msg)
        networks = {name: _network(config, block.width, len(wanted)) for name, config in by_name.items()}
        for network in networks.values():
            nn.init.constant_(network.head.bias, self.config.init_logit)  # type: ignore[union-attr, arg-type]
        gate = LayerGate(block.name, wanted, networks, site.budget.scope)
        gate.configs = by_name
        gate.width = block.width
        return gate

    def _record(self, block: str, gate: LayerGate, columns: tuple[str | None, ...]) -> Attach:
        config = GateRecord(
            columns=columns,
            width=gate.width,
            network=gate.configs[gate.network_name].model_dump(mode="json"),
            scope="batch" if gate.scope == "batch" else "sample",
            threshold=gate.threshold,
        )
        return Attach(
            site=block,
            plugin=self.config.use,
            distribution="usdcore",
            version=version("usdcore"),
            config=config.model_dump(mode="json"),
        )


def _network(config: Any, width: int, outputs: int) -> nn.Module:
    network: nn.Module = registry().load("gate-network", config.use)(config, width, outputs)
    return network
