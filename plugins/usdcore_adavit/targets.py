"""At which usage of heads, layers and tokens a model costs what the budget says."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from usdcore.plans import TOKENS

if TYPE_CHECKING:
    from collections.abc import Iterable

    from torch import Tensor

    from usdcore.costs import Tree
    from usdcore_adavit.gate import PolicyGate


@dataclass(frozen=True)
class Targets:
    """Mean usage, each in (0, 1]; None where it is not stated."""

    heads: float | None
    layers: float | None
    tokens: float | None

    @property
    def is_stated(self) -> bool:
        """Whether nothing is left to be solved for."""
        return None not in (self.heads, self.layers, self.tokens)

    def filled(self, usage: float) -> Targets:
        """With `usage` for what is not stated."""
        heads, layers, tokens = (usage if own is None else own for own in (self.heads, self.layers, self.tokens))
        return Targets(heads, layers, tokens)


def expected_macs(tree: Tree, gates: Iterable[PolicyGate], targets: Targets) -> float:
    """What the model costs, gates included, where all decisions are made alike and apart from each other."""
    assert targets.heads is not None
    assert targets.layers is not None
    assert targets.tokens is not None
    keeps: dict[str, Tensor] = {}
    counts: dict[str, Tensor] = {}
    own = 0.0
    for gate in gates:
        policy = gate.policy
        own += gate.macs()
        keeps |= {name: torch.tensor(targets.layers) for name in policy.layers if name is not None}
        keeps |= {site: torch.full((group.count,), targets.heads) for group in policy.heads for site in group.sites}
        if f"{gate.tap}{TOKENS}" in gate.sites:
            counts |= dict.fromkeys(policy.branches, torch.tensor(policy.prefix + targets.tokens * policy.patches))
    return float(tree.expected(keeps, torch.device("cpu"), counts)) * tree.total + own


def solved(tree: Tree, gates: Iterable[PolicyGate], stated: Targets, macs: float) -> Targets:
    """The stated targets, and for the others the one usage at which the model costs `macs`; 1, or next to none, where
    that is out of reach.
    """
    gates, low, high = list(gates), 0.01, 1.0
    for _ in range(14 if not stated.is_stated else 0):
        middle = (low + high) / 2
        if expected_macs(tree, gates, stated.filled(middle)) > macs:
            high = middle
        else:
            low = middle
    return stated.filled(high if high == 1.0 else (low + high) / 2)
