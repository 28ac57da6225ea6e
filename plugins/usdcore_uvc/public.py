"""R as the public code counts it (its `calc_flops`), which is not the budget's cost: the classifier is left out, a
removed V row is not credited, only the output projection and the product with V shrink with the dims of a head.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

if TYPE_CHECKING:
    from collections.abc import Sequence

    from usdcore.units.types import AttentionUnit, Units
    from usdcore_uvc.layout import Layout


@dataclass(frozen=True)
class PublicCost:
    """Multiply-accumulates per image, by layer: `query` is qkv and q k^T [A], `value` is the product with v and the
    projection [A], `ffn` both linear layers [F], `embed` everything that is neither a branch nor the classifier.
    `dense` is the whole model in the public code's unit, two for each multiply-accumulate. `attention_gate` [A] and
    `ffn_gate` [F] say which gate a layer runs under, -1 for none.
    """

    query: Tensor
    value: Tensor
    ffn: Tensor
    embed: float
    dense: float
    attention_gate: Tensor
    ffn_gate: Tensor

    def ratio(self, heads: Tensor, value_share: Tensor, hidden: Tensor, execute: Tensor) -> Tensor:
        """R. Shares that are left: of heads [A], of the value path [A] (rho), of hidden neurons [F]; execute weights of
        the gates.
        """
        ones = torch.cat([execute, execute.new_ones(1)])
        run_a, run_f = ones[self.attention_gate], ones[self.ffn_gate]
        spent = (run_a * (self.query * heads + self.value * value_share)).sum() + (run_f * self.ffn * hidden).sum()
        return 2 * (self.embed + spent) / self.dense


def public_cost(model: nn.Module, units: Units, layout: Layout, skips: Sequence[str]) -> PublicCost:
    """The public code's cost of a plain model. Only attention whose q, k and v are as wide as the stream is counted
    exactly so.
    """
    device = next(model.parameters()).device
    place = {name: index for index, name in enumerate(skips)}
    block_of = {branch.name: block.name for block in units.blocks for branch in block.branches}

    def gate(unit_name: str | None) -> int:
        name = unit_name or ""
        return place.get(name, place.get(block_of.get(name, ""), -1))

    heads = [unit for unit in units.attention if any(row.group == f"{unit.name}:heads" for row in layout.heads.rows)]
    ffns = [unit for unit in units.ffn if any(row.group == f"{unit.name}:hidden" for row in layout.hidden.rows)]
    parts = [_parts(unit) for unit in heads]
    branches = sum(unit.macs for unit in (*heads, *ffns))
    counted = units.macs - _classifier_macs(model)

    def tensor(values: Sequence[float]) -> Tensor:
        return torch.tensor(values, dtype=torch.float64, device=device)

    return PublicCost(
        query=tensor([query for query, _ in parts]),
        value=tensor([value for _, value in parts]),
        ffn=tensor([unit.macs for unit in ffns]),
        embed=float(counted - branches),
        dense=2.0 * counted,
        attention_gate=torch.tensor([gate(u.branch.name if u.branch else None) for u in heads], device=device),
        ffn_gate=torch.tensor([gate(u.branch.name if u.branch else None) for u in ffns], device=device),
    )


def _parts(unit: AttentionUnit) -> tuple[float, float]:
    """qkv with q k^T, and the product with v with the projection: the projections take four equal parts."""
    dims = next(group for group in unit.groups if group.kind == "v_dims")
    projection = dims.macs_per_entry / 2 * unit.num_heads * unit.v_dim
    product = (unit.macs - 4 * projection) / 2
    return 3 * projection + product, product + projection


def _classifier_macs(model: nn.Module) -> int:
    found = getattr(model, "get_classifier", lambda: ())()
    heads = found if isinstance(found, tuple) else (found,)
    return sum(head.weight.numel() for head in heads if isinstance(head, nn.Linear))
