"""Which blocks are given fewer tokens, and how few."""

from __future__ import annotations

from typing import TYPE_CHECKING

from usdcore.gates import Gating, Reducer
from usdcore.plans import OUTPUT, TOKENS

if TYPE_CHECKING:
    from usdcore.units.types import BlockUnit, Units


def varied_blocks(units: Units, gating: Gating) -> dict[str, BlockUnit]:
    """The blocks whose number of tokens gates change: those with a token site, and all after a reducer."""
    sites = {site for gate in gating.all() for site in gate.sites if site.endswith(TOKENS)}
    varied, is_reduced = {}, False
    for block in units.blocks:
        own = {name + TOKENS for name in (block.name, *block.units)}
        is_reduced = is_reduced or bool(own & gating.reducers.keys())
        if is_reduced or sites & own:
            varied[block.name] = block
        is_reduced = is_reduced or block.name + OUTPUT in gating.reducers
    return varied


def fewest_tokens(units: Units, gating: Gating) -> dict[str, int]:
    """How few tokens gates may leave each branch."""
    found: dict[str, int] = {}
    reduced: int | None = None
    for block in units.blocks:
        for branch in block.branches:
            left = reduced
            for name in (block.name, branch.name):
                for gate in gating.all():
                    if name + TOKENS in gate.sites:
                        left = gate.fewest_tokens
                        reduced = left if isinstance(gate, Reducer) else reduced
            if left is not None:
                found[branch.name] = left
        after = gating.reducers.get(block.name + OUTPUT)
        reduced = reduced if after is None else after.fewest_tokens
    return found
