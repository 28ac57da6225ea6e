"""What became of each token of an image: for pictures of what was merged."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from usdcore.errors import UsdcoreError
from usdcore.runner import gating_of
from usdcore_tome.gate import NOTE, Merge

if TYPE_CHECKING:
    from torch import Tensor, nn


@torch.no_grad()
def sources(model: nn.Module, images: Tensor) -> Tensor:
    """For each token of the first block's stream, the one of the last that it is part of: [B, N] of numbers below M.

    Tokens with equal numbers were merged; class and register tokens come first. The model runs once in evaluation mode.
    Errors: it merges no tokens.
    """
    gating, was_training = gating_of(model), model.training
    gates = [gate for gate in gating.all() if isinstance(gate, Merge)] if gating is not None else []
    if gating is None or not gates:
        msg = "this model merges no tokens: there is nothing to follow"
        raise UsdcoreError(msg)
    try:
        for gate in gates:
            gate.follows = True
        model.eval()(images)
        found: Tensor = gating.state.notes[NOTE].source
    finally:
        model.train(was_training)
        for gate in gates:
            gate.follows = False
    return found
