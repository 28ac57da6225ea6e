"""What torch's FLOP counter says of a forward, halved. The math backend, as the counter misses fused attention on
some CPUs.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode


@torch.no_grad()
def counted_macs(model: nn.Module, images: Tensor) -> int:
    """MACs of the whole batch. The counter fails on modules with two inputs where parameters require gradients."""
    trained = [p for p in model.parameters() if p.requires_grad]
    for p in trained:
        p.requires_grad_(False)
    try:
        with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
            model(images)
    finally:
        for p in trained:
            p.requires_grad_(True)
    return int(counter.get_total_flops()) // 2
