"""`budget.round_to: auto`: which sizes the device that runs a recipe is fast at, measured when the run begins."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from usdcore.machine import conditions
from usdcore.steps import fast_step, slowdowns
from usdcore.units import find_units

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from torch import nn

#: Images per call, as far as the budget has so many: what is fast does not depend on it.
BATCH = 8


def fast_sizes(
    dense: nn.Module,
    input_shape: tuple[int, ...],
    batch_size: int,
    device: torch.device,
    ratios: Callable[[Mapping[str, nn.Module], int], Mapping[str, float]],
) -> dict[str, Any]:
    """The `step` to round to, what was found by step (`slowdowns`), and the conditions of that. `ratios` times models
    at a batch size, over the first of them.
    """
    example, batch = torch.zeros(1, *input_shape, device="meta"), min(batch_size, BATCH)
    found = slowdowns(dense, find_units(dense, example), example, lambda models: ratios(models, batch))
    return {
        "step": fast_step(found),
        "slowdowns": {str(step): round(slowdown, 4) for step, slowdown in found.items()},
        "conditions": conditions(device) | {"batch_size": batch, "threads": torch.get_num_threads()},
    }
