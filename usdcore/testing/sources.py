"""Laws about data sources."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from usdcore.engine.data import DataSets, SeededDataset
from usdcore.errors import UsdcoreError
from usdcore.testing.laws import Broken

if TYPE_CHECKING:
    from usdcore.testing.subject import Subject

MOST = 8
"""Images to look at of each part."""


def _loaded(subject: Subject) -> DataSets:
    try:
        found = subject.load()(subject.config()).load()
    except UsdcoreError as error:
        do = "give conformance(..., options={...}) a small data set that is there"
        raise Broken(subject.where, f"load() refused: {error}", do) from None
    if not isinstance(found, DataSets):
        what = f"load() gives a {type(found).__name__}"
        raise Broken(subject.where, what, "give usdcore.engine.data.DataSets")
    return found


def _parts(data: DataSets) -> dict[str, Any]:
    return {"train": data.train, "train_eval": data.train_eval, "test": data.test}


def items(subject: Subject) -> None:
    """The first items of each part are (finite float tensor [C, S, S], label in range), as the options say."""
    config, data = subject.config(), _loaded(subject)
    wanted = (data.in_chans, config.input_size, config.input_size)
    if data.in_chans != config.channels:
        what = f"its images have {data.in_chans} channels, and its config class says {config.channels}"
        raise Broken(subject.where, what, "state `channels: ClassVar[int]` in the config class")
    known = config.known_classes()
    if known is not None and known != data.num_classes:
        what = f"known_classes() says {known}, and what is loaded has {data.num_classes}"
        raise Broken(subject.where, what, "return None where it is not known before loading")
    numbers = len(data.train), len(data.test)  # type: ignore[arg-type]
    for said, number in zip(config.known_images(), numbers, strict=True):
        if said not in (None, number):
            what = f"known_images() says {config.known_images()}, and what is loaded has {numbers} images"
            raise Broken(subject.where, what, "return None for what is not known before loading")
    for name, part in _parts(data).items():
        for index in range(min(MOST, len(part))):
            image, label = part[index]
            where = f"{subject.where}, {name}[{index}]"
            if not isinstance(image, Tensor) or not image.is_floating_point() or tuple(image.shape) != wanted:
                what = (
                    f"the image is {getattr(image, 'dtype', type(image).__name__)} {list(getattr(image, 'shape', []))}"
                )
                raise Broken(where, what, f"give a float tensor {list(wanted)}")
            if not bool(torch.isfinite(image).all()):
                raise Broken(where, "the image is not finite", "normalise by a deviation above 0")
            if not 0 <= int(label) < data.num_classes:
                raise Broken(where, f"label {label} of {data.num_classes} classes", "count classes from 0")


def parts(subject: Subject) -> None:
    """`train` and `train_eval` hold the same images in one order; `labels`, where there are any, are the items' own;
    what is evaluated looks the same every time.
    """
    data = _loaded(subject)
    if len(data.train) != len(data.train_eval):  # type: ignore[arg-type]
        what = f"train has {len(data.train)} images and train_eval {len(data.train_eval)}"  # type: ignore[arg-type]
        raise Broken(subject.where, what, "train_eval is train without augmentation")
    for index in range(min(MOST, len(data.train))):  # type: ignore[arg-type]
        if int(data.train[index][1]) != int(data.train_eval[index][1]):
            what = f"image {index} has another label in train than in train_eval"
            raise Broken(subject.where, what, "both need one order")
    for name, part in _parts(data).items():
        labels = getattr(part, "labels", None)
        for index in range(min(MOST, len(part))):
            first, second = part[index], part[index]
            if labels is not None and int(labels[index]) != int(first[1]):
                raise Broken(subject.where, f"{name}.labels[{index}] is not the item's label", "keep them in order")
            if name != "train" and not torch.equal(first[0], second[0]):
                raise Broken(subject.where, f"{name}[{index}] differs when read again", "evaluate without augmentation")


def repeats(subject: Subject) -> None:
    """Loaded twice, it is the same data under the same fingerprint, a sha256; the description is one line."""
    first, second = _loaded(subject), _loaded(subject)
    if len(first.fingerprint) != 64 or set(first.fingerprint) - set("0123456789abcdef"):
        what = f"the fingerprint is {first.fingerprint!r}"
        raise Broken(subject.where, what, "give hashlib.sha256(...).hexdigest() of the files or arrays")
    if first.fingerprint != second.fingerprint:
        raise Broken(subject.where, "the fingerprint differs when loaded again", "hash what is there, in a fixed order")
    if not first.description.strip() or "\n" in first.description:
        raise Broken(subject.where, f"the description is {first.description!r}", "give one line for reports")
    for name, part in _parts(first).items():
        again = _parts(second)[name]
        if len(part) != len(again) or (name != "train" and not torch.equal(part[0][0], again[0][0])):
            raise Broken(subject.where, f"{name} differs when loaded again", "choose subsets by a fixed seed")


def replays(subject: Subject) -> None:
    """Under one seed and epoch a training image looks the same, whatever else is in its batch."""
    data = _loaded(subject)
    number = min(MOST, len(data.train))  # type: ignore[arg-type]
    together = SeededDataset(data.train, seed=3, epoch=1).__getitems__(list(range(number)))
    for index, (image, _) in enumerate(together):
        torch.rand(3)
        if not torch.equal(SeededDataset(data.train, seed=3, epoch=1)[index][0], image):
            what = f"training image {index} looks otherwise alone than in a batch, under one seed"
            do = "draw augmentation from Python's, numpy's or torch's global generator, or from seeded_items' seeds"
            raise Broken(subject.where, what, do)
