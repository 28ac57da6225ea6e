from __future__ import annotations

import random
from collections.abc import Iterator

import numpy as np
import pytest
import torch
from torch.utils.data import Dataset

from usdcore.engine.data import (
    DataSets,
    EpochOrder,
    SeededDataset,
    Waited,
    eval_loader,
    sample_seed,
    steps_per_epoch,
    train_loader,
)
from usdcore.errors import UsdcoreError
from usdcore.hooks.config import DataConfig


class Noisy(Dataset):
    """Each image is its index plus draws from all three global generators; label = index % 3."""

    def __init__(self, length, noise=True):
        self.length, self.noise = length, noise

    def __len__(self):
        return self.length

    def __getitem__(self, index):
        draws = [random.random(), float(np.random.rand()), float(torch.rand(()))] if self.noise else [0.0] * 3
        return torch.tensor([float(index), *draws], dtype=torch.float64).view(1, 1, 4), index % 3


class Broken(Noisy):
    def __getitem__(self, index):
        if index == 2:
            msg = "data: can't read the image two.png: replace it"
            raise UsdcoreError(msg)
        return super().__getitem__(index)


def datasets(length, kind=Noisy):
    return DataSets(
        train=kind(length),
        train_eval=Noisy(length, noise=False),
        test=Noisy(5, noise=False),
        num_classes=3,
        in_chans=1,
        description="numbers",
        fingerprint="0" * 64,
    )


def config(batch_size, workers=0):
    return DataConfig(source="x", input_size=4, batch_size=batch_size, workers=workers)


def epoch(length=11, batch_size=3, seed=0, number=0, workers=0, **options):
    loader = train_loader(datasets(length), config(batch_size, workers), seed, number, **options)
    return [(images.view(len(images), 4), labels) for images, labels in loader]


def equal(first, second):
    return len(first) == len(second) and all(
        torch.equal(a[0], b[0]) and torch.equal(a[1], b[1]) for a, b in zip(first, second, strict=True)
    )


def generator_states():
    return repr(random.getstate()), repr(np.random.get_state()), torch.get_rng_state().tolist()


def test_the_order_is_a_function_of_seed_and_epoch():
    orders = {(s, e): list(EpochOrder(50, s, e)) for s in (0, 1) for e in (0, 1)}
    assert all(sorted(order) == list(range(50)) for order in orders.values())
    assert len({tuple(order) for order in orders.values()}) == 4
    torch.manual_seed(1234)
    assert list(EpochOrder(50, 1, 0)) == orders[1, 0]


def test_an_order_can_start_later():
    order = EpochOrder(10, 0, 3, start=7)
    assert len(order) == 3
    assert list(order) == list(EpochOrder(10, 0, 3))[7:]


def test_sample_seeds_do_not_collide_for_neighbours():
    seeds = {sample_seed(s, e, i) for s in range(5) for e in range(5) for i in range(40)}
    assert len(seeds) == 1000
    assert all(0 <= seed < 2**64 for seed in seeds)


def test_augmentation_depends_on_seed_epoch_and_index_only():
    data = SeededDataset(Noisy(6), seed=3, epoch=2)
    alone = data[4][0]
    random.seed(9)
    np.random.seed(9)
    torch.manual_seed(9)
    assert torch.equal(data.__getitems__([1, 4, 0])[1][0], alone)
    others = [SeededDataset(Noisy(6), 3, 1)[4][0], SeededDataset(Noisy(6), 2, 2)[4][0]]
    for other in others:
        assert (other != alone).sum() == 3  # every one of the three generators was seeded anew


def test_global_generators_are_left_alone():
    before = generator_states()
    epoch()
    list(eval_loader(Noisy(4, noise=False), 2, seed=0, subset=3))
    assert generator_states() == before


def test_generators_are_restored_after_an_error():
    before = generator_states()
    with pytest.raises(UsdcoreError):
        SeededDataset(Broken(4), 0, 0).__getitems__([0, 1, 2])
    assert generator_states() == before


def test_workers_do_not_change_batches():
    assert equal(epoch(), epoch(workers=2))


def test_resuming_gives_the_remaining_batches():
    whole = epoch()
    for step in range(4):
        assert equal(epoch(start_step=step), whole[step:])


def test_incomplete_batches_are_dropped_in_training():
    assert [len(labels) for _, labels in epoch(length=11, batch_size=3)] == [3, 3, 3]
    assert steps_per_epoch(11, 3) == 3


def test_a_set_smaller_than_a_batch_is_one_step():
    assert [len(labels) for _, labels in epoch(length=5, batch_size=8)] == [5]
    assert steps_per_epoch(5, 8) == 1
    assert epoch(length=5, batch_size=8, start_step=1) == []


def test_the_images_left_over_change_with_the_epoch():
    def used(number):
        return {int(image[0]) for images, _ in epoch(length=11, batch_size=8, number=number) for image in images}

    assert len({frozenset(used(number)) for number in range(6)}) > 1


@pytest.mark.parametrize("length", [0, 1])
def test_too_few_training_images(length):
    with pytest.raises(UsdcoreError, match=f"the training set has {length} image"):
        epoch(length=length)


def test_a_seeded_items_data_set_is_given_its_seeds():
    class Taking(Noisy):
        def seeded_items(self, indices, seeds):
            return [(torch.tensor([seed % 1000]), index) for index, seed in zip(indices, seeds, strict=True)]

    data = SeededDataset(Taking(6), 1, 2)
    assert data[5] == (torch.tensor([sample_seed(1, 2, 5) % 1000]), 5)


def test_eval_keeps_order_and_every_image():
    batches = list(eval_loader(Noisy(5, noise=False), 2))
    assert [len(labels) for _, labels in batches] == [2, 2, 1]
    assert torch.cat([images for images, _ in batches]).view(5, 4)[:, 0].tolist() == [0, 1, 2, 3, 4]


def indices(loader):
    return torch.cat([images for images, _ in loader]).view(-1, 4)[:, 0].int().tolist()


def test_eval_shuffles_and_cuts_by_seed():
    data = Noisy(20, noise=False)
    first = indices(eval_loader(data, 4, seed=1, subset=8))
    assert first == indices(eval_loader(data, 3, seed=1, subset=8))
    assert len(set(first)) == 8
    assert first != indices(eval_loader(data, 4, seed=2, subset=8))
    assert sorted(indices(eval_loader(data, 4, seed=1, subset=99))) == list(range(20))


def test_eval_sorts_by_class():
    data = Noisy(9, noise=False)
    assert indices(eval_loader(data, 3, sort_by_class=True)) == [0, 3, 6, 1, 4, 7, 2, 5, 8]
    chosen = indices(eval_loader(data, 3, seed=0, subset=5))
    ordered = indices(eval_loader(data, 3, seed=0, subset=5, sort_by_class=True))
    assert sorted(chosen) == sorted(ordered)
    assert [index % 3 for index in ordered] == sorted(index % 3 for index in chosen)


def test_sorting_uses_labels_where_they_are_known():
    class Labelled(Noisy):
        labels = (1, 0, 1)

        def __getitem__(self, index):
            return torch.zeros(1, 1, 4).add(index), self.labels[index]

    assert indices(eval_loader(Labelled(3), 3, sort_by_class=True)) == [1, 0, 2]


def test_an_empty_evaluation_set():
    with pytest.raises(UsdcoreError, match="the evaluation set has no images"):
        eval_loader(Noisy(0), 2)


@pytest.mark.parametrize("workers", [0, 1])
def test_an_error_of_the_data_stays_one_clean_message(workers):
    loader = train_loader(datasets(4, Broken), config(4, workers), 0, 0)
    with pytest.raises(UsdcoreError) as caught:
        list(loader)
    assert str(caught.value) == "data: can't read the image two.png: replace it"


def test_waiting_for_data_is_told_from_working_on_them(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    monkeypatch.setattr("usdcore.engine.data.time.perf_counter", lambda: now[0])

    def loader() -> Iterator[int]:
        for batch in range(3):
            now[0] += 2.0
            yield batch

    batches = Waited(loader())
    for _ in batches:
        now[0] += 10.0
    assert batches.seconds == 6.0
