"""What torch's FLOP counter says of a forward, halved. The math backend, as the counter misses fused attention on
some CPUs.
"""

from __future__ import annotations

import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode


@torch.no_grad()
def counted_macs(model: nn.Module, images: torch.Tensor) -> int:
    """MACs of the whole batch."""
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        model(images)
    return counter.get_total_flops() // 2
