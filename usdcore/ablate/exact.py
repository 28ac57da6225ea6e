"""What needs no training: costs of dense models, of gate networks that a recipe fixes, of printed structures."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from usdcore.ablate.structure import PrintedStructure, priced
from usdcore.construct import units_of
from usdcore.costs import cost
from usdcore.engine.setup import make_base
from usdcore.errors import UsdcoreError
from usdcore.hooks import registry
from usdcore.hooks.reference import field_references
from usdcore.recipe import PluginConfig

if TYPE_CHECKING:
    from usdcore.ablate.loading import Line
    from usdcore.plans import Base
    from usdcore.recipe import Recipe
    from usdcore.units.types import Units


@dataclass(frozen=True)
class GateCost:
    """Of all gate networks of a model: multiply-accumulates, and the paper's count `2 * in * out + out`."""

    macs: int
    paper_flops: int
    params: int


class Exact:
    """Computes and remembers; each model is looked at once, without its weights where that is possible."""

    def __init__(self) -> None:
        self._units: dict[str, Units] = {}

    def values(self, line: Line) -> dict[str, float]:
        """By column's key, what is known of a row. Errors: a model that can't be made, a structure that is not its."""
        recipe = line.recipe
        if recipe is None:
            return {}
        if line.row.structure is not None:
            return self.structure(line).values
        if line.row.model == "dense":
            dense = cost(self.units(recipe))
            whole = {"params": dense.params, "macs": dense.macs, "executed_macs": dense.macs}
            return whole | {"share": 1.0, "static_share": 1.0}
        if line.row.model == "compressed" and (found := self._fixed_gates(recipe)) is not None:
            return {"gate_macs": found.macs, "gate_flops": found.paper_flops}
        return {}

    def structure(self, line: Line) -> PrintedStructure:
        """A row's printed structure on its recipe's model. Errors: one that is not that model's."""
        assert line.recipe is not None
        assert line.row.structure is not None
        try:
            return priced(self._base(line.recipe), self.units(line.recipe), line.row.structure, network_cost)
        except UsdcoreError as error:
            msg = f"row {line.row.name!r}: {error}"
            raise UsdcoreError(msg) from error

    def units(self, recipe: Recipe) -> Units:
        """The units of a recipe's dense model."""
        base = self._base(recipe)
        key = base.model_dump_json()
        if key not in self._units:
            self._units[key] = units_of(base)
        return self._units[key]

    def _base(self, recipe: Recipe) -> Base:
        return make_base(recipe.model, recipe.data.input_size, recipe.data.channels)

    def _fixed_gates(self, recipe: Recipe) -> GateCost | None:
        """The networks of every layer, where a strategy has one and the same in all of them."""
        for phase in recipe.phases:
            for strategy in phase.strategies:
                for name, field in type(strategy).model_fields.items():
                    network = getattr(strategy, name)
                    if isinstance(network, PluginConfig) and any(
                        reference.kind == "gate-network" for reference in field_references(field)
                    ):
                        return self._of_every_layer(recipe, network)
        return None

    def _of_every_layer(self, recipe: Recipe, network: PluginConfig) -> GateCost | None:
        found = []
        for block in self.units(recipe).blocks:
            outputs = sum(branch.reason is None for branch in block.branches)
            if outputs:
                found.append(_cost_of(network, block.width, outputs))
        return _sum(found)


def network_cost(name: str, width: int, outputs: int) -> GateCost:
    """Of one registered gate network with its default options. Errors: no such network."""
    return _cost_of(registry().config("gate-network", name)(use=name), width, outputs)


def _cost_of(network: PluginConfig, width: int, outputs: int) -> GateCost:
    with torch.device("meta"):
        made = registry().load("gate-network", network.use)(network, width, outputs)
    return GateCost(made.macs, made.paper_flops, sum(p.numel() for p in made.parameters()))


def _sum(costs: list[GateCost]) -> GateCost | None:
    if not costs:
        return None
    return GateCost(sum(c.macs for c in costs), sum(c.paper_flops for c in costs), sum(c.params for c in costs))
