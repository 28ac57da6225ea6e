"""The resource term of Eq. 9: gamma * (F - f_t)^2, with F of Eq. 10 (search) or Eq. 11 (fine-tuning).

F is the budget's metric as a share of the dense model, of the very draws that the forward used, gate networks included
by their true cost: the core computes it. Both strategies ask for the same term; it is added once a step.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

    from usdcore.strategy import Budget, StepContext


def ramped(target: float, ctx: StepContext, ramp: float) -> float:
    """The target now: it falls in a line from 1 to `target` over the share `ramp` of the phase."""
    return target if ramp <= 0 else 1 - (1 - target) * min(1.0, ctx.progress / ramp)


def resource_losses(ctx: StepContext, budget: Budget, weight: float, ramp: float = 0.0) -> dict[str, Tensor]:
    """The term for the budget and, where the recipe bounds the shrunk model too, one for that bound."""
    if ctx.spent is None or not ctx.claim("usdc.resource", {"resource_weight": weight, "ramp": ramp}):
        return {}
    terms = {"resource": weight * (ctx.spent - ramped(budget.target, ctx, ramp)) ** 2}
    if budget.static is not None and ctx.spent_static is not None:
        terms["resource_static"] = weight * (ctx.spent_static - budget.static).clamp(min=0) ** 2
    return terms
