"""The three ways of USDC to cut a batch into groups (Table 5).

Each is built as `cls(config)`; `sizes(batch_size, generator)` lists group sizes that are at least 1 and sum to the
batch size, and is a function of its arguments only. Which sample goes to which group is not decided here: see
`usdcore.groups.group_ids`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from .config import AverageSplit, RandomSplit, RecursiveSplit


class Average:
    """Equal groups: 256 samples at size 32 give 8 groups. A remainder makes one smaller group at the end."""

    def __init__(self, config: AverageSplit) -> None:
        self.config = config

    def sizes(self, batch_size: int, generator: torch.Generator) -> list[int]:
        """Group sizes; the generator is not used."""
        whole, rest = divmod(batch_size, self.config.size)
        return [self.config.size] * whole + [rest] * (rest > 0)


class Random:
    """Consecutive draws from low..high until the batch is used up.

    The paper states the range 1..64; that the draws are uniform and the last one cut is reconstructed.
    """

    def __init__(self, config: RandomSplit) -> None:
        self.config = config

    def sizes(self, batch_size: int, generator: torch.Generator) -> list[int]:
        """Group sizes, drawn with the generator."""
        out: list[int] = []
        rest = batch_size
        while rest > 0:
            draw = torch.randint(
                self.config.low, self.config.high + 1, (), generator=generator, device=generator.device
            )
            out.append(min(int(draw), rest))
            rest -= out[-1]
        return out


class Recursive:
    """Halving by a logarithm of 2: 256 samples give 128, 64, 32, 16, 8, 4, 2, 1, 1.

    The paper states the recursion; its tail (a last pair split in 1, 1, so that single samples are trained too) and the
    rule for odd numbers (the larger half first) are reconstructed.
    """

    def __init__(self, config: RecursiveSplit) -> None:
        self.config = config

    def sizes(self, batch_size: int, generator: torch.Generator) -> list[int]:
        """Group sizes, largest first; the generator is not used."""
        out: list[int] = []
        rest = batch_size
        while rest > self.config.min_group:
            out.append((rest + 1) // 2)
            rest -= out[-1]
        return out + [rest] * (rest > 0)
