"""Options of the data sources. Imports neither torch nor timm."""

from __future__ import annotations

from pathlib import Path  # noqa: TC003 - pydantic reads the annotation
from typing import Annotated, ClassVar, Literal, Self

from pydantic import Field, model_validator

from usdcore.recipe import DataConfig

SMALL = 64
"""Up to this input size images are taken whole: padded crops instead of resized ones, and caching is allowed."""

_CLASSES = {
    "torch/cifar10": 10,
    "torch/cifar100": 100,
    "torch/mnist": 10,
    "torch/kmnist": 10,
    "torch/fashion_mnist": 10,
    "torch/qmnist": 10,
}

_IMAGES = {
    "torch/cifar10": (50_000, 10_000),
    "torch/cifar100": (50_000, 10_000),
    "torch/mnist": (60_000, 10_000),
    "torch/kmnist": (60_000, 10_000),
    "torch/fashion_mnist": (60_000, 10_000),
}
"""In the training and in the test half."""

Deviation = Annotated[float, Field(gt=0)]


class DigitsConfig(DataConfig):
    """scikit-learn's digits: 1437 training and 360 test images of 10 classes, one grey channel."""

    channels: ClassVar[int] = 1

    input_size: int = Field(default=8, ge=8, le=1024)
    """Side in pixels; the 8x8 images are scaled up to it."""
    augment: Literal["none", "shift"] = "none"
    """shift: move by up to one pixel of the 8x8 image."""
    interpolation: Literal["nearest", "bilinear"] = "bilinear"
    """How images are scaled up."""

    def known_classes(self) -> int:
        """Ten digits."""
        return 10

    def known_images(self) -> tuple[int, int]:
        """Of the installed package."""
        return 1437, 360


class TimmConfig(DataConfig):
    """Images that `timm.data.create_dataset` opens: folders, torchvision's and Hugging Face's data sets.

    A split is looked for under its own name and that name's usual spellings (train: training; validation: val, valid,
    eval, evaluation), never under another split's.
    """

    name: str = ""
    """timm's data set name: empty for ROOT/SPLIT/CLASS/IMAGE folders, torch/cifar10, hfds/PATH-OR-NAME; no streams."""
    root: Path | None = None
    """Folder of the data; the cache folder for hfds."""
    train_split: str = "train"
    """Images to train on."""
    eval_split: str = "validation"
    """Images to evaluate on; folders that have a test set instead want `test`."""
    augment: Literal["none", "basic", "deit"] = "none"
    """basic: random crop and flip; deit: DeiT's RandAugment and random erasing as well."""
    mean: tuple[float, float, float] = (0.485, 0.456, 0.406)
    """Per channel, of values in 0..1; ImageNet's."""
    std: tuple[Deviation, Deviation, Deviation] = (0.229, 0.224, 0.225)
    """Per channel, of values in 0..1; ImageNet's."""
    interpolation: Literal["nearest", "bilinear", "bicubic", "lanczos"] = "bicubic"
    """How images are resized."""
    crop_pct: float | None = Field(default=None, gt=0, le=1)
    """Centre crop as a fraction of the resized image, for evaluation; default 1 up to input size 64, else 0.875."""
    subset: int | None = Field(default=None, ge=2)
    """Train on so many images only, the first of a fixed shuffle."""
    eval_subset: int | None = Field(default=None, ge=1)
    """Evaluate on so many images only, the first of a fixed shuffle."""
    cache: bool = False
    """Decode every image at the start and keep it in memory as bytes (3 * input_size^2 each). Without it a split of up
    to 256 MiB is kept as well, each image from when it is first read."""
    download: bool = False
    """Let torchvision download what is missing under root."""

    def known_classes(self) -> int | None:
        """Of the sets that everybody knows by name."""
        return _CLASSES.get(self.name.lower())

    def known_images(self) -> tuple[int | None, int | None]:
        """Of those sets as well, and of class folders that are here, which are listed. `subset` and `eval_subset` are
        taken for the number where nothing else is known.
        """
        train, test = (
            self._known(option, limit)
            for option, limit in (("train_split", self.subset), ("eval_split", self.eval_subset))
        )
        return train, test

    def _known(self, option: str, limit: int | None) -> int | None:
        number = None
        halves = _IMAGES.get(self.name.lower())
        if halves is not None:
            number = halves[0 if getattr(self, option) in ("train", "training") else 1]
        elif not self.name and self.root is not None and self.root.is_dir():
            from .source import open_source  # with timm: only where there is something to list

            number = len(open_source(self, option).labels)
        return min((n for n in (number, limit) if n is not None), default=None)

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        kind = self.name.partition("/")[0]
        if kind not in ("", "torch", "hfds") or self.name in ("torch", "hfds"):
            # timm would stream the other kinds, and read an unknown name as a folder: all splits of it at once.
            msg = f"name {self.name!r}: can be read in any order are only '' (class folders), torch/NAME and hfds/NAME"
            raise ValueError(msg)
        if self.root is None and kind != "hfds":
            msg = f"root is missing: data named {self.name!r} is read from a folder; write root: FOLDER"
            raise ValueError(msg)
        if self.cache and self.input_size > SMALL:
            msg = f"cache is for input_size up to {SMALL}, not {self.input_size}: leave it out"
            raise ValueError(msg)
        return self
