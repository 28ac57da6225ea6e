"""What goes from the host to the device that a model runs on."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor


def sent(values: Tensor | Sequence[float], device: torch.device) -> Tensor:
    """A tensor of the host, of any shape, or numbers [n], on `device`; from pinned memory, so that the copy does not
    wait for what the device is doing.
    """
    tensor = torch.as_tensor(values)
    return tensor.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else tensor.to(device)
