from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

import usdcore_splits
from usdcore.groups import group_ids
from usdcore.hooks import build_registry

REGISTRY = build_registry(usdcore_splits)
BATCH = st.integers(1, 600)
SEED = st.integers(0, 2**32)


def sizes(name, batch_size, seed=0, **options):
    split = REGISTRY.load("split", name)(REGISTRY.config("split", name)(**options))
    return split.sizes(batch_size, torch.Generator().manual_seed(seed))


def test_three_splits_are_registered():
    assert REGISTRY.names("split") == ("average", "random", "recursive")


def test_the_papers_batch():
    assert sizes("recursive", 256) == [128, 64, 32, 16, 8, 4, 2, 1, 1]
    assert sizes("recursive", 256, min_group=2) == [128, 64, 32, 16, 8, 4, 2, 2]
    assert sizes("average", 256, size=32) == [32] * 8
    assert sizes("average", 256, size=8) == [8] * 32


def test_batches_that_do_not_divide():
    assert sizes("average", 70, size=32) == [32, 32, 6]
    assert sizes("average", 5, size=32) == [5]
    assert sizes("recursive", 7) == [4, 2, 1]
    assert sizes("recursive", 100) == [50, 25, 13, 6, 3, 2, 1]
    assert [sizes(name, 1, **options) for name, options in (("recursive", {}), ("random", {}))] == [[1], [1]]


@given(BATCH, st.integers(1, 700))
def test_average_groups_are_equal_but_for_the_last(batch_size, size):
    out = sizes("average", batch_size, size=size)
    assert sum(out) == batch_size
    assert all(group == size for group in out[:-1])
    assert 0 < out[-1] <= size


@given(BATCH, SEED, st.integers(1, 40), st.integers(0, 60))
def test_random_groups_stay_in_range(batch_size, seed, low, extra):
    out = sizes("random", batch_size, seed, low=low, high=low + extra)
    assert sum(out) == batch_size
    assert all(low <= group <= low + extra for group in out[:-1])
    assert 0 < out[-1] <= low + extra
    assert out == sizes("random", batch_size, seed, low=low, high=low + extra)


@given(BATCH, st.integers(1, 64))
def test_recursive_groups_halve_what_is_left(batch_size, min_group):
    out = sizes("recursive", batch_size, min_group=min_group)
    assert sum(out) == batch_size
    rest = batch_size
    for group in out[:-1]:
        assert group == (rest + 1) // 2
        rest -= group
    assert 0 < out[-1] <= max(min_group, 1)
    assert out == sorted(out, reverse=True)


def test_random_draws_cover_their_range():
    drawn = {group for seed in range(40) for group in sizes("random", 256, seed)[:-1]}
    assert min(drawn) == 1
    assert max(drawn) == 64
    assert len({tuple(sizes("random", 256, seed)) for seed in range(10)}) == 10


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("average", {}),
        ("average", {"size": 0}),
        ("random", {"low": 5, "high": 4}),
        ("recursive", {"min_group": 0}),
        ("recursive", {"size": 3}),
    ],
)
def test_wrong_options(name, options):
    with pytest.raises(ValidationError):
        sizes(name, 8, **options)


@given(st.lists(st.integers(1, 20), min_size=1, max_size=12), SEED)
def test_group_ids_have_the_given_sizes(groups, seed):
    ids = group_ids(groups, torch.Generator().manual_seed(seed))
    assert ids.dtype == torch.long
    assert ids.bincount(minlength=len(groups)).tolist() == groups
    assert torch.equal(ids, group_ids(groups, torch.Generator().manual_seed(seed), "cpu"))


def test_group_membership_is_shuffled_evenly():
    generator = torch.Generator().manual_seed(0)
    hits = sum((group_ids([4, 2, 1, 1], generator) == 0).float() for _ in range(2000)) / 2000
    assert hits.shape == (8,)
    assert (hits - 0.5).abs().max() < 0.05


def test_an_empty_list_gives_no_ids():
    assert group_ids([], torch.Generator()).shape == (0,)
