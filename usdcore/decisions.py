"""What the strategies of a phase decided, taken together, and whether it can be carried out."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from usdcore.errors import BudgetMissed, UsdcoreError
from usdcore.units.types import is_width

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from usdcore.gates import Gating
    from usdcore.strategy import Decision


def require_no_reader(gating: Gating, deciding: Iterable[str]) -> None:
    """Errors: a residual stream is to lose channels that gates on the model read."""
    widths = [name for name in deciding if is_width(name)]
    taps = [gate.tap for gate in gating.all() if gate.tap is not None]
    if widths and taps:
        msg = (
            f"{widths[0]} can't be cut while gates read the stream (at {taps[0]}), as they are made for its channels; "
            f"cut it in a phase before the one that first names the gates"
        )
        raise UsdcoreError(msg)


def scores_of(decisions: Sequence[Decision]) -> dict[str, Any]:
    """Scores of all strategies; an entry that two strategies score counts as its lower score."""
    scores: dict[str, Any] = {}
    for decision in decisions:
        for site, tensor in decision.scores.items():
            new = tensor.detach().cpu().double()
            scores[site] = new if site not in scores else torch.minimum(scores[site], new)
    return {site: tensor.numpy() for site, tensor in scores.items()}


def require_met(decisions: Sequence[Decision], searched: float, target: float) -> None:
    """Errors: a search that promises to meet the budget by itself has not."""
    for decision in decisions:
        if decision.within is not None and abs(searched - target) > decision.within:
            msg = (
                f"the search came to {searched:.4f} of the dense model by itself and {target:g} was asked for, which "
                f"is further off than {decision.within:g}. {decision.account}"
            )
            raise BudgetMissed(msg)
