"""How little of a model gates and strategies could leave, and budgets that ask for less than that."""

from __future__ import annotations

from typing import TYPE_CHECKING

from usdcore.costs import fewest
from usdcore.errors import UsdcoreError
from usdcore.tokens.blocks import fewest_tokens

if TYPE_CHECKING:
    from collections.abc import Mapping

    from usdcore.costs import Tree
    from usdcore.gates import Gating
    from usdcore.strategy import Budget


def least_left(tree: Tree, gating: Gating | None, decided: Mapping[str, int]) -> float:
    """The least cost in the tree's metric: all off that gates may touch, and `decided` entries left of the groups that
    strategies decide about without. The gates' own cost is not in it.
    """
    units = tree.units
    counted = [gate for gate in gating.all() if tree.metric == "macs" or gate.scope == "static"] if gating else []
    blocks = {block.name: block.units for block in units.blocks}
    sites = {own for gate in counted for site in gate.sites for own in blocks.get(site, (site,))}
    branches = {name: 0 for name in sites if name in units.branches}
    if gating is not None and tree.prices:
        tree = tree.with_tokens({name: (n, n * n) for name, n in fewest_tokens(units, gating).items()})
    return tree.decided({**fewest(units, sites), **decided, **branches})


def require_reachable(least: float, budget: Budget) -> None:
    """Errors: a budget below `least`, a share of the dense model."""
    if least > budget.target:
        msg = (
            f"budget {budget.metric} {budget.target:g} can't be reached: with everything off that these "
            f"strategies may touch, {least:.4f} of the dense model is left; ask for at least that, or let more "
            f"be pruned"
        )
        raise UsdcoreError(msg)
