"""Data for a run: what a source hands over, the order of an epoch, augmentation that can be replayed, the loaders.

Everything random here is a function of (seed, epoch, sample index) alone: not of worker processes, of the batch size,
of the step at which a run was resumed, or of any global random state, which is left as it was found.

Shape legend: B batch, C channels, H and W pixels.
"""

from __future__ import annotations

import hashlib
import random
import time
import traceback
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol, TypeAlias, cast, runtime_checkable

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from usdcore.errors import UsdcoreError

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence, Sized

    from usdcore.hooks.config import DataConfig

Item: TypeAlias = tuple[Tensor, int]


@dataclass(frozen=True)
class DataSets:
    """What a data source loads. Each item of a data set is (float tensor [C, H, W], int label).

    A data set may have `labels`, the label of every item in order, so that nobody has to decode images for them.
    """

    train: Dataset[Item]
    """Training images with training augmentation, which may draw from the global random generators."""
    train_eval: Dataset[Item]
    """The same images in the same order with evaluation transforms: for calibration."""
    test: Dataset[Item]
    """Evaluation images with evaluation transforms."""
    num_classes: int
    in_chans: int
    description: str
    """One line for reports: what was loaded, and how many images of it."""
    fingerprint: str
    """sha256 (hex) of the file list with sizes, or of the arrays: equal for equal data."""


@runtime_checkable
class SeededItems(Protocol):
    """A data set that augments from seeds it is given instead of the global generators, a whole batch at once."""

    def seeded_items(self, indices: Sequence[int], seeds: Sequence[int]) -> list[Item]:
        """The items at `indices`, each augmented as its own seed says, whatever else is in the batch."""


def sample_seed(seed: int, epoch: int, index: int) -> int:
    """The 64-bit seed of one sample in one epoch; unrelated for neighbouring arguments."""
    return int.from_bytes(hashlib.blake2b(f"{seed}/{epoch}/{index}".encode(), digest_size=8).digest(), "little")


class EpochOrder(Sampler[int]):
    """A permutation of `length` indices that is a function of (seed, epoch); the first `start` of it are left out."""

    def __init__(self, length: int, seed: int, epoch: int, start: int = 0) -> None:
        self.length, self.seed, self.epoch, self.start = length, seed, epoch, start

    def __iter__(self) -> Iterator[int]:
        generator = torch.Generator().manual_seed(sample_seed(self.seed, self.epoch, -1))
        yield from torch.randperm(self.length, generator=generator).tolist()[self.start :]

    def __len__(self) -> int:
        return max(0, self.length - self.start)


class SeededDataset(Dataset[Item]):
    """A data set whose augmentation is a function of (seed, epoch, sample index).

    Python's, numpy's and torch's (CPU) global generators are seeded around each item and restored afterwards; a data
    set that has `seeded_items` is given the seeds instead, which is faster.
    """

    def __init__(self, dataset: Dataset[Item], seed: int, epoch: int) -> None:
        self.dataset, self.seed, self.epoch = dataset, seed, epoch

    def __len__(self) -> int:
        return _length(self.dataset)

    def __getitem__(self, index: int) -> Item:
        return self.__getitems__([index])[0]

    def __getitems__(self, indices: Sequence[int]) -> list[Item]:
        """The items of a batch (the DataLoader asks for them in one call)."""
        seeds = [sample_seed(self.seed, self.epoch, index) for index in indices]
        if isinstance(self.dataset, SeededItems):
            return self.dataset.seeded_items(indices, seeds)
        items = []
        with preserved_generators():
            for index, seed in zip(indices, seeds, strict=True):
                _seed_generators(seed)
                items.append(self.dataset[index])
        return items


def steps_per_epoch(length: int, batch_size: int) -> int:
    """Steps that `train_loader` makes of `length` images: an incomplete batch is dropped unless it is all there is."""
    return max(1, length // batch_size)


def train_loader(
    datasets: DataSets,
    config: DataConfig,
    seed: int,
    epoch: int,
    start_step: int = 0,
    *,
    rows: Sequence[int] | None = None,
    pin_memory: bool = False,
) -> DataLoader[Any]:
    """Augmented batches (images [B, C, H, W], labels [B], on the CPU) of one epoch, from step `start_step` on.

    Batches that remain after `start_step` are the same as in an unbroken epoch. A training set smaller than a batch
    makes one step of all its images; otherwise every batch is full, and each epoch leaves out other images. With `rows`
    only these rows of each batch, in this order: a process's share.

    Raises:
        UsdcoreError: there are fewer than 2 training images.
    """
    length = _length(datasets.train)
    if length < 2:
        msg = (
            f"data: the training set has {length} image(s), but training needs at least 2: check root, split and subset"
        )
        raise UsdcoreError(msg)
    steps = steps_per_epoch(length, config.batch_size)
    assert 0 <= start_step <= steps, f"step {start_step} of an epoch of {steps} steps"
    batch_size = min(length, config.batch_size)
    order = list(EpochOrder(length, seed, epoch))
    rows = range(batch_size) if rows is None else rows
    chosen = [order[step * batch_size + row] for step in range(start_step, steps) for row in rows]
    return _Loader(
        SeededDataset(datasets.train, seed, epoch),
        batch_size=len(rows),
        sampler=chosen,
        **_loading(config.workers, pin_memory),
    )


def eval_loader(
    dataset: Dataset[Item],
    batch_size: int,
    seed: int | None = None,
    subset: int | None = None,
    sort_by_class: bool = False,
    *,
    turn: tuple[int, int] = (0, 1),
    workers: int = 0,
    pin_memory: bool = False,
) -> DataLoader[Any]:
    """Batches of an evaluation set; the last one may be smaller.

    Args:
        dataset: with evaluation transforms.
        batch_size: images per batch, at least 1.
        seed: shuffle by it; None keeps the data set's own order.
        subset: only the first so many images of that order; all of them where the set is smaller.
        sort_by_class: order the chosen images by label, which is the hardest order for gates shared by a batch.
        turn: (r, w): only the batches r, r + w, r + 2w, ...; there may be none.
        workers: loader processes.
        pin_memory: for CUDA only.

    Raises:
        UsdcoreError: there is no image.
    """
    length = _length(dataset)
    if length == 0 or subset == 0:
        msg = "data: the evaluation set has no images: check root, split and subset"
        raise UsdcoreError(msg)
    order = list(range(length)) if seed is None else list(EpochOrder(length, seed, epoch=-1))
    order = order[:subset]
    if sort_by_class:
        labels = _labels(dataset, order)
        order.sort(key=lambda index: labels[index])
    firsts = range(turn[0] * batch_size, len(order), turn[1] * batch_size)
    order = [index for first in firsts for index in order[first : first + batch_size]]
    return _Loader(dataset, batch_size=batch_size, sampler=order, **_loading(workers, pin_memory))


class Waited:
    """Iterates over a loader, and adds up the seconds until each batch was there: those in which nothing is trained."""

    def __init__(self, loader: Iterable[Any]) -> None:
        self.loader, self.seconds = loader, 0.0

    def __iter__(self) -> Iterator[Any]:
        asked = time.perf_counter()
        for batch in self.loader:
            self.seconds += time.perf_counter() - asked
            yield batch
            asked = time.perf_counter()


class _Loader(DataLoader[Any]):
    """A DataLoader that passes on a `UsdcoreError` of a worker process as the clean message it was."""

    def __iter__(self) -> Iterator[Any]:  # type: ignore[override]
        try:
            yield from super().__iter__()
            return
        except UsdcoreError as error:
            # A worker's exception arrives as the text of its whole traceback, which ends with the message.
            message = str(error).rpartition(f"{UsdcoreError.__name__}: ")[2].strip()
            # The frames hold the error and the workers' iterator in a cycle, so the workers would linger.
            traceback.clear_frames(error.__traceback__)
        raise UsdcoreError(message)


def _loading(workers: int, pin_memory: bool) -> dict[str, Any]:
    # A loader draws a seed for its workers even without any; its own generator keeps that away from the global one.
    return {
        "num_workers": workers,
        "pin_memory": pin_memory,
        "persistent_workers": False,
        "generator": torch.Generator(),
    }


def _length(dataset: Dataset[Item]) -> int:
    return len(cast("Sized", dataset))


def _labels(dataset: Dataset[Item], indices: Sequence[int]) -> dict[int, int]:
    known = getattr(dataset, "labels", None)
    return {index: int(known[index]) if known is not None else int(dataset[index][1]) for index in indices}


@contextmanager
def preserved_generators() -> Iterator[None]:
    """Afterwards Python's, numpy's and torch's (CPU) global generators are as they were found."""
    states = random.getstate(), np.random.get_state(), torch.get_rng_state()
    try:
        yield
    finally:
        random.setstate(states[0])
        np.random.set_state(states[1])
        torch.set_rng_state(states[2])


def _seed_generators(seed: int) -> None:
    random.seed(seed)
    np.random.seed([seed & 0xFFFFFFFF, seed >> 32])
    # Not torch.manual_seed: that also queues a call for every accelerator, for each image.
    torch.default_generator.manual_seed(seed)
