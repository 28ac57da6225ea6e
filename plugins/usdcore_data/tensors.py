"""Images as arrays of one size, augmented by shifts and flips a batch at a time.

Shape legend: B batch, C channels, H and W pixels.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

import numpy as np
import torch
from torch.utils.data import Dataset

from usdcore.engine.data import Item

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor


class Pixels(Protocol):
    """Where raw pixels come from: memory, or files that are decoded on demand."""

    def pixels(self, indices: Sequence[int]) -> np.ndarray:
        """Raw images [B, C, H, W], a fresh array."""


class ArrayPixels:
    """Pixels in memory, [N, C, H, W] of any dtype."""

    def __init__(self, array: np.ndarray) -> None:
        self.array = array

    def pixels(self, indices: Sequence[int]) -> np.ndarray:
        """The images at `indices`, copied."""
        return self.array[list(indices)]


class TensorImages(Dataset[Item]):
    """Pixels to normalised float tensors, `(pixels - mean) / std`, with optional augmentation before that.

    Args:
        source: the pixels.
        labels: one for each image.
        mean: per channel, in the units of the pixels.
        std: per channel, in the units of the pixels.
        shift: pad by so many black pixels on each side and crop at random.
        flip: mirror left to right, half of the time.
    """

    def __init__(
        self,
        source: Pixels,
        labels: Sequence[int],
        mean: Sequence[float],
        std: Sequence[float],
        *,
        shift: int = 0,
        flip: bool = False,
    ) -> None:
        self.source, self.labels, self.shift, self.flip = source, list(labels), shift, flip
        self._mean, self._std = (torch.tensor(values, dtype=torch.float32).view(1, -1, 1, 1) for values in (mean, std))

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> Item:
        return self.__getitems__([index])[0]

    def __getitems__(self, indices: Sequence[int]) -> list[Item]:
        """The items of a batch; augmentation draws from torch's global generator."""
        augmented = self.shift or self.flip
        seeds = [int(torch.randint(2**62, ())) for _ in indices] if augmented else [0] * len(indices)
        return self.seeded_items(indices, seeds)

    def seeded_items(self, indices: Sequence[int], seeds: Sequence[int]) -> list[Item]:
        """The items at `indices`, each augmented as its own seed says."""
        raw = self.source.pixels(indices)
        if self.shift or self.flip:
            raw = self._augmented(raw, seeds)
        images_BCHW: Tensor = torch.from_numpy(raw).float().sub_(self._mean).div_(self._std)
        return list(zip(images_BCHW.unbind(0), [self.labels[index] for index in indices], strict=True))

    def _augmented(self, raw: np.ndarray, seeds: Sequence[int]) -> np.ndarray:
        pad, (height, width) = self.shift, raw.shape[2:]
        padded = np.pad(raw, ((0, 0), (0, 0), (pad, pad), (pad, pad)))
        # A slice per image beats one gather for the whole batch several times over: rows stay contiguous.
        for image, source, seed in zip(raw, padded, seeds, strict=True):
            rest, top = divmod(seed, 2 * pad + 1)
            rest, left = divmod(rest, 2 * pad + 1)
            crop = source[:, top : top + height, left : left + width]
            image[...] = crop[..., ::-1] if self.flip and rest % 2 else crop
        return raw
