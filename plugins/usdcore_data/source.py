"""Open a split with timm and look at what is there: labels, classes, names of files, one decoded image."""

from __future__ import annotations

import hashlib
import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image
from timm.data import create_dataset

from usdcore.errors import UsdcoreError, nearest

if TYPE_CHECKING:
    from collections.abc import Sequence

    from .config import TimmConfig

_SPELLINGS = (("train", "training"), ("validation", "val", "valid", "eval", "evaluation"))
_TORCH_PAIRS = ("cifar10", "cifar100", "mnist", "kmnist", "fashion_mnist", "qmnist")
"""torchvision's sets that have a training and a test half; timm takes any unknown split for the test half."""


@dataclass(frozen=True)
class Source:
    """One split: timm's or torchvision's data set, its labels (from 0), its class names in that order.

    `where` names it in messages; `root` is the folder that names of files are relative to.
    """

    images: Any
    labels: list[int]
    classes: list[str]
    where: str
    root: str

    def image(self, index: int) -> Image.Image:
        """One decoded RGB image.

        Raises:
            UsdcoreError: it can't be read; the message names the file.
        """
        try:
            reader = getattr(self.images, "reader", None)
            if reader is None:
                return self.images[index][0].convert("RGB")
            # Not timm's own __getitem__: that puts the next image in the place of one it can't read.
            with reader[index][0] as file:
                return Image.open(file).convert("RGB")
        except Exception as error:  # every image format raises errors of its own
            msg = (
                f"data: can't read the image {self.name(index)} ({type(error).__name__}: {error}): replace or delete it"
            )
            raise UsdcoreError(msg) from error

    def name(self, index: int) -> str:
        """The file of an image, as far as it is known, else its number."""
        paths = getattr(self.images, "samples", None)
        if paths is not None:
            return str(paths[index][0])
        name = self.images.filename(index, absolute=True) if hasattr(self.images, "filename") else None
        return str(name or f"number {index} of {self.where}")

    def fingerprint(self, indices: Sequence[int]) -> bytes:
        """sha256 over labels, class names, and each chosen image: its path below the root and its size, or its array.

        Where neither is at hand (Hugging Face tables) it covers labels and class names only.

        Raises:
            UsdcoreError: a file has gone.
        """
        digest = hashlib.sha256(repr((self.classes, [self.labels[index] for index in indices])).encode())
        samples = getattr(getattr(self.images, "reader", self.images), "samples", None)
        array = getattr(self.images, "data", None)
        if samples is not None:
            for index in indices:
                path = str(samples[index][0])
                digest.update(f"{os.path.relpath(path, self.root)}:{_size(path)}\n".encode())
        elif array is not None:
            for index in indices:
                digest.update(np.ascontiguousarray(array[index]).tobytes())
        return digest.digest()


def open_source(config: TimmConfig, option: str) -> Source:
    """Open the split that the option `train_split` or `eval_split` names.

    Raises:
        UsdcoreError: there is no such folder or split, no image, no class folder or no label, or a package is missing.
    """
    split = getattr(config, option)
    if config.name:
        return _open_named(config, option, split)
    folder = _split_folder(config.root, option, split)
    try:
        images = create_dataset("", root=str(folder), split=split, search_split=False)
    except RuntimeError as error:
        msg = f"data.root: no images in {folder}: expected {folder}/CLASS/IMAGE.jpg (or png, ...)"
        raise UsdcoreError(msg) from error
    source = _inspected(images, str(folder), str(folder))
    if "" in source.classes:
        stray = source.name(source.labels.index(source.classes.index("")))
        msg = f"data.root: {stray} is in no class folder: expected {folder}/CLASS/IMAGE, one folder for each class"
        raise UsdcoreError(msg)
    return source


def _split_folder(root: Path | None, option: str, split: str) -> Path:
    assert root is not None, "the config's validator asks for it"
    if not root.is_dir():
        msg = f"data.root: there is no folder {root}; check the path, which is relative to the current folder"
        raise UsdcoreError(msg)
    names = [split, *(name for spellings in _SPELLINGS if split in spellings for name in spellings if name != split)]
    for name in names:
        if (root / name).is_dir():
            return root / name
    found = sorted(path.name for path in root.iterdir() if path.is_dir())
    there = f"it has {', '.join(found[:8])}" if found else "it has no folders at all"
    msg = f"data.{option}: {root} has no folder {' or '.join(names)}; {there}: set data.{option} to one of its folders"
    raise UsdcoreError(msg)


def _open_named(config: TimmConfig, option: str, split: str) -> Source:
    kind, _, rest = config.name.partition("/")
    if kind == "torch":
        _check_torch(rest.lower(), option, split)
    options = {"download": config.download} if kind == "torch" else {}
    root = str(config.root) if config.root is not None else None
    where = f"{config.name}, split {split}"
    try:
        images = create_dataset(config.name, root=root, split=split, search_split=False, **options)
    except ImportError as error:
        msg = f"data.name: {config.name} needs the package {error.name}: pip install {error.name}"
        raise UsdcoreError(msg) from error
    except Exception as error:  # each library behind timm has its own; all mean that the data can't be opened
        place = f" under {root}" if root else ""
        fetch = (
            "; data.download: true would fetch it" if isinstance(error, RuntimeError) and not config.download else ""
        )
        msg = f"data: timm can't open {where}{place} ({_first_line(error)}){fetch}"
        raise UsdcoreError(msg) from error
    return _inspected(images, where, root or ".")


def _check_torch(name: str, option: str, split: str) -> None:
    if name in ("folder", "image_folder"):
        msg = f"data.name: torch/{name} is not supported: leave name out to read class folders"
        raise UsdcoreError(msg)
    valid = [spelling for spellings in (*_SPELLINGS, ("test",)) for spelling in spellings]
    if name in _TORCH_PAIRS and split not in valid:
        msg = f"data.{option}: torch/{name} has no split {split!r}; {nearest(split, valid)}"
        raise UsdcoreError(msg)


def _inspected(images: Any, where: str, root: str) -> Source:
    reader = getattr(images, "reader", images)
    if hasattr(reader, "iter_targets"):
        targets = list(reader.iter_targets())
    elif hasattr(reader, "samples"):
        targets = [target for _, target in reader.samples]
    else:
        targets = getattr(images, "targets", None)
        targets = [image[1] for image in images] if targets is None else targets
    index = getattr(reader, "class_to_idx", None) or {}
    classes = [str(name) for name in sorted(index, key=index.__getitem__)] or [
        str(c) for c in getattr(images, "classes", [])
    ]
    if not len(targets):
        msg = f"data: there are no images in {where}"
        raise UsdcoreError(msg)
    try:
        labels = [int(target) for target in targets]
    except TypeError as error:
        msg = f"data: {where} does not give one class for each image, but {targets[0]!r}"
        raise UsdcoreError(msg) from error
    if min(labels) < 0:
        msg = f"data: {where} has images without a label: choose another split"
        raise UsdcoreError(msg)
    return Source(images, labels, classes or [str(label) for label in range(max(labels) + 1)], where, root)


def _size(path: str) -> int:
    try:
        return Path(path).stat().st_size
    except OSError as error:  # a link to nothing, say
        msg = f"data: can't read the image {path} ({error.strerror}): replace or delete it"
        raise UsdcoreError(msg) from error


def _first_line(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__
