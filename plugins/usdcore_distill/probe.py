"""One forward of one blank image: what a model gives, and of which shape."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from usdcore.errors import UsdcoreError
from usdcore.teachers import Tap, primary

if TYPE_CHECKING:
    from collections.abc import Iterable


@torch.no_grad()
def probe(
    model: nn.Module, input_shape: tuple[int, ...], modules: Iterable[str] = ()
) -> tuple[Tensor, dict[str, Tensor]]:
    """The logits [1, K], and what each of `modules` gives, in evaluation mode; the model is left as it was.

    Errors: a module that is not there or is not run; whatever the model raises for an image [C, H, W] of this shape.
    """
    modes = {module: module.training for module in model.modules()}
    taps: dict[str, Tap] = {}
    try:
        for name in modules:
            if name not in taps:
                taps[name] = Tap(model, name)
        logits = primary(model.eval()(next(model.parameters()).new_zeros(1, *input_shape)))
        return logits, {name: _seen(tap, model) for name, tap in taps.items()}
    finally:
        for tap in taps.values():
            tap.close()
        for module, was in modes.items():
            module.training = was


def _seen(tap: Tap, model: nn.Module) -> Tensor:
    if tap.value is None:
        msg = f"{type(model).__name__} has a module {tap.module!r}, but its forward does not run it: name another one"
        raise UsdcoreError(msg)
    return tap.value
