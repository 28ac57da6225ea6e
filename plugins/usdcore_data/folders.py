"""The `timm` data source: a training and an evaluation split, decoded, augmented, normalised.

For an input size up to `SMALL`, images are first brought to that size and then augmented whole (padded crop, flip);
they may be cached at that point. For larger ones crops are taken from the original (RandomResizedCrop), as on ImageNet.

Shape legend: B batch, S input size.
"""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING

import numpy as np
import torch
from PIL import Image, ImageOps
from timm.data import create_transform
from timm.data.auto_augment import RandAugment
from torch.utils.data import Dataset
from torchvision.transforms import Compose, RandomCrop

from usdcore.engine.data import DataSets, Item
from usdcore.errors import UsdcoreError

from .config import SMALL
from .source import Source, open_source
from .tensors import ArrayPixels, TensorImages

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from .config import TimmConfig
    from .tensors import Pixels

_SUBSET_SEED = 0
HELD_BYTES = 2**28
"""A split whose images take no more than this once they are resized is decoded once, and kept in memory."""
_DEIT = {"auto_augment": "rand-m9-mstd0.5-inc1", "re_prob": 0.25, "re_mode": "pixel", "re_count": 1}
"""DeiT's. Its repeated augmentation is a sampler's matter and is left out."""


class DecodedPixels:
    """Files decoded on demand and brought to [3, S, S] bytes by the evaluation geometry: resize, centre crop."""

    def __init__(self, source: Source, chosen: Sequence[int], config: TimmConfig) -> None:
        self.source, self.chosen, self.size = source, chosen, config.input_size
        self.geometry = create_transform(
            config.input_size,
            interpolation=config.interpolation,
            crop_pct=config.crop_pct or (1.0 if config.input_size <= SMALL else 0.875),
            normalize=False,
        )

    def pixels(self, indices: Sequence[int]) -> np.ndarray:
        """Bytes [B, 3, S, S]."""
        out = np.empty((len(indices), 3, self.size, self.size), np.uint8)
        for row, index in zip(out, indices, strict=True):
            row[...] = self.geometry(self.source.image(self.chosen[index])).numpy()
        return out


class KeptPixels:
    """Files decoded when they are first asked for, and held from then on."""

    def __init__(self, decoded: DecodedPixels) -> None:
        self.decoded = decoded
        self.is_held = np.zeros(len(decoded.chosen), bool)
        self.held: np.ndarray | None = None

    def pixels(self, indices: Sequence[int]) -> np.ndarray:
        """Bytes [B, 3, S, S], a fresh array."""
        wanted = np.asarray(indices, np.int64)
        if self.held is None:
            self.held = np.empty((len(self.is_held), 3, self.decoded.size, self.decoded.size), np.uint8)
        missing = np.unique(wanted[~self.is_held[wanted]])
        if len(missing):
            self.held[missing] = self.decoded.pixels(missing.tolist())
            self.is_held[missing] = True
        return self.held[wanted]


class PilImages(Dataset[Item]):
    """PIL images through a transform that draws from the global random generators."""

    def __init__(
        self,
        image: Callable[[int], Image.Image],
        labels: Sequence[int],
        transform: Callable[[Image.Image], torch.Tensor],
    ) -> None:
        self.image, self.labels, self.transform = image, list(labels), transform

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> Item:
        return self.transform(self.image(index)), self.labels[index]


def _training_transform(config: TimmConfig) -> Compose:
    transform = create_transform(
        config.input_size,
        is_training=True,
        color_jitter=None,
        interpolation=config.interpolation,
        mean=config.mean,
        std=config.std,
        **(_DEIT if config.augment == "deit" else {}),
    )
    for step in transform.transforms:
        for operation in step.ops if isinstance(step, RandAugment) else []:
            if operation.name.startswith("Posterize"):
                operation.aug_fn = _posterize
    return transform


def _posterize(image: Image.Image, bits: int, **_: object) -> Image.Image:
    # At its highest magnitude timm keeps 0 bits, a black image, which newer releases of Pillow refuse.
    return ImageOps.posterize(image, max(1, bits))


class _Part:
    """The chosen images of one split."""

    def __init__(self, source: Source, limit: int | None, config: TimmConfig) -> None:
        generator = torch.Generator().manual_seed(_SUBSET_SEED)
        order = torch.randperm(len(source.labels), generator=generator).tolist()
        self.source, self.chosen = source, sorted(order[:limit])
        self.labels = [source.labels[index] for index in self.chosen]
        self.config = config
        decoded = DecodedPixels(source, self.chosen, config)
        self.pixels: Pixels = decoded
        if config.cache:
            self.pixels = ArrayPixels(decoded.pixels(range(len(self.chosen))))
        elif len(self.chosen) * 3 * config.input_size**2 <= HELD_BYTES:
            self.pixels = KeptPixels(decoded)

    def original(self, index: int) -> Image.Image:
        return self.source.image(self.chosen[index])

    def resized(self, index: int) -> Image.Image:
        return Image.fromarray(self.pixels.pixels([index])[0].transpose(1, 2, 0))

    def evaluated(self, *, shift: int = 0, flip: bool = False) -> TensorImages:
        mean, std = ([255 * value for value in values] for values in (self.config.mean, self.config.std))
        return TensorImages(self.pixels, self.labels, mean, std, shift=shift, flip=flip)

    def augmented(self) -> Dataset[Item]:
        size, preset = self.config.input_size, self.config.augment
        small, padding = size <= SMALL, size // 8
        if preset == "none":
            return self.evaluated()
        if preset == "basic" and small:
            return self.evaluated(shift=padding, flip=True)
        transform = _training_transform(self.config)
        if small:
            transform.transforms[0] = RandomCrop(size, padding=padding)
        return PilImages(self.resized if small else self.original, self.labels, transform)


class TimmData:
    """Image folders, torchvision's and Hugging Face's data sets."""

    def __init__(self, config: TimmConfig) -> None:
        self.config = config

    def load(self) -> DataSets:
        """Open both splits; with `cache` also decode them.

        Raises:
            UsdcoreError: see `open_source`; the splits' classes differ; an image to cache can't be read.
        """
        sources = open_source(self.config, "train_split"), open_source(self.config, "eval_split")
        _check_classes(*sources)
        train, test = (
            _Part(source, limit, self.config)
            for source, limit in zip(sources, (self.config.subset, self.config.eval_subset), strict=True)
        )
        classes = len(train.source.classes)
        images = f"{len(train.chosen)} training and {len(test.chosen)} evaluation images of {classes} classes"
        fingerprints = [part.source.fingerprint(part.chosen) for part in (train, test)]
        return DataSets(
            train=train.augmented(),
            train_eval=train.evaluated(),
            test=test.evaluated(),
            num_classes=classes,
            in_chans=3,
            description=f"{self.config.name or 'folder ' + self.config.root.name}: {images}",
            fingerprint=hashlib.sha256(b"".join(fingerprints)).hexdigest(),
        )


def _check_classes(train: Source, test: Source) -> None:
    if train.classes == test.classes:
        return
    only = []
    for here, there in ((train, test), (test, train)):
        names = sorted(set(here.classes) - set(there.classes))
        only.append(f"only in {here.where}: {', '.join(names[:5]) or 'none'}{', ...' * (len(names) > 5)}")
    msg = (
        f"data: training and evaluation classes (or their order) differ; {'; '.join(only)}: give both the same classes"
    )
    raise UsdcoreError(msg)
