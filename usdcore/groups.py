"""Groups of a batch: which samples share one gate decision (USDC, Figure 2, "group shuffle").

Shape legend: B batch.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from usdcore.devices import sent

if TYPE_CHECKING:
    from collections.abc import Sequence


def group_ids(
    sizes: Sequence[int], generator: torch.Generator, device: torch.device | str | None = None
) -> torch.Tensor:
    """The group of each sample, [B] int64 with values 0 .. len(sizes) - 1; group g has `sizes[g]` members.

    Membership is a random permutation drawn with `generator`, on the generator's own device, so that the result does
    not depend on `device`, where the ids are put (default: the generator's). B is the sum of `sizes`.
    """
    home = generator.device
    counts = torch.tensor(list(sizes), dtype=torch.long, device=home)
    labels_B = torch.repeat_interleave(torch.arange(len(counts), device=home), counts)
    order_B = torch.randperm(len(labels_B), generator=generator, device=home)
    return sent(labels_B[order_B], torch.device(device or home))
