"""ToMe's matching, merging and schedules as pure functions."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from usdcore_tome.matching import destinations, match, merge
from usdcore_tome.schedule import Costs, solve, spread


def test_a_worked_example() -> None:
    """Prefix p; A = a0, a1, a2 at angles 0, 48 and 90 degrees; B = b0, b1 at 10 and 60: a0-b0 and a1-b1 are nearest."""
    angles = torch.deg2rad(torch.tensor([45.0, 0.0, 10.0, 48.0, 60.0, 90.0]))
    metric = torch.stack([angles.cos(), angles.sin()], -1)[None] * torch.tensor([1.0, 9, 1, 1, 5, 1])[None, :, None]
    found = match(metric, prefix=1, r=2)
    assert found.merged.tolist() == [[1, 3]]
    assert found.into.tolist() == [[2, 3]]
    assert found.kept.tolist() == [[0, 5, 2, 4]]
    x = torch.tensor([[[100.0], [1.0], [4.0], [10.0], [20.0], [7.0]]])
    size = torch.tensor([[1.0, 1.0, 2.0, 3.0, 1.0, 1.0]])
    merged, sizes = merge(x, size, found)
    torch.testing.assert_close(merged, torch.tensor([[[100.0], [7.0], [(1 + 2 * 4) / 3], [(3 * 10 + 20) / 4]]]))
    assert sizes.tolist() == [[1.0, 1.0, 3.0, 4.0]]
    assert destinations(found).tolist() == [[0, 2, 2, 3, 3, 1]]


def test_several_tokens_may_become_one() -> None:
    metric = torch.tensor([[[1.0, 0], [1.0, 0.1], [1.0, 0.2], [-1.0, 0]]])  # A: 0, 2; B: 1, 3
    found = match(metric, prefix=0, r=2)
    merged, sizes = merge(torch.tensor([[[3.0], [6.0], [9.0], [5.0]]]), torch.ones(1, 4), found)
    torch.testing.assert_close(merged, torch.tensor([[[6.0], [5.0]]]))
    assert sizes.tolist() == [[3.0, 1.0]]


def test_of_equal_proposals_the_first_count() -> None:
    found = match(torch.ones(3, 9, 4), prefix=1, r=2)
    assert found.merged.tolist() == [[1, 3]] * 3
    assert found.into.tolist() == [[3, 3]] * 3


def test_tokens_of_zero_length_and_infinite_ones_are_no_trouble() -> None:
    metric = torch.zeros(1, 8, 4)
    merged, _ = merge(torch.randn(1, 8, 3), torch.ones(1, 8), match(metric, 0, 4))
    assert bool(merged.isfinite().all())


@given(st.integers(0, 3), st.integers(2, 21), st.integers(0, 30), st.integers(0, 2**31))
def test_laws_of_merging(prefix: int, free: int, wanted: int, seed: int) -> None:
    """Sizes sum to N, the prefix stays, the weighted sum of all tokens too, and what is not merged stays to the bit."""
    generator = torch.Generator().manual_seed(seed)
    tokens, r = prefix + free, min(wanted, free // 2)
    x = torch.randn(2, tokens, 5, generator=generator)
    size = torch.randint(1, 6, (2, tokens), generator=generator).float()
    found = match(torch.randn(2, tokens, 3, generator=generator), prefix, r)
    merged, sizes = merge(x, size, found)
    assert merged.shape == (2, tokens - r, 5)
    assert torch.equal(sizes.sum(1), size.sum(1))
    assert torch.equal(merged[:, :prefix], x[:, :prefix])
    torch.testing.assert_close((merged * sizes[..., None]).sum(1), (x * size[..., None]).sum(1), rtol=1e-4, atol=1e-4)
    new = destinations(found)
    for image in range(2):
        for place in range(tokens - r):
            own = (new[image] == place).nonzero().flatten()
            assert sizes[image, place] == size[image, own].sum()
            mean = (x[image, own] * size[image, own, None]).sum(0) / size[image, own].sum()
            torch.testing.assert_close(merged[image, place], mean if len(own) > 1 else x[image, own[0]])
            if len(own) == 1:
                assert torch.equal(merged[image, place], x[image, own[0]])


def test_gradients_pass_to_all_that_were_merged() -> None:
    x = torch.randn(1, 7, 3, dtype=torch.double, requires_grad=True)
    size = torch.tensor([[1.0, 2, 1, 3, 1, 1, 2]], dtype=torch.double)
    found = match(torch.randn(1, 7, 4), 1, 3)
    assert torch.autograd.gradcheck(lambda x: merge(x, size, found)[0], x)


# --- schedules


@given(st.integers(1, 40), st.integers(0, 700), st.floats(-1, 1))
def test_a_schedule_sums_to_its_total(places: int, total: int, inflection: float) -> None:
    found = spread(total, places, inflection)
    assert found.shape == (places,)
    assert found.sum() == total
    assert found.min() >= 0


def test_shapes_of_schedules() -> None:
    assert spread(13 * 12, 12, 0.0).tolist() == [13] * 12
    assert spread(5, 4, 0.0).tolist() == [1, 2, 1, 1]
    falling = spread(13 * 12, 12, -1.0)
    assert falling[0] == 26
    assert falling[-1] == 0
    assert (np.diff(falling) <= 0).all()
    assert np.abs(spread(13 * 12, 12, 1.0) - falling[::-1]).max() <= 1


def deit_small() -> Costs:
    """Prices of DeiT-S: 12 blocks of width 384, 197 tokens; patch embedding and head are 0.058 G."""
    width = 384
    attention, ffn = (0, 4 * width**2, 2 * width), (0, 8 * width**2, 0)
    both = (0, attention[1] + ffn[1], attention[2])
    return Costs(196 * 768 * width + width * 1000, (attention, *(both,) * 11, ffn), (64,) * 12, 197, 1)


def test_published_settings_cost_what_was_published() -> None:
    """DeiT-S with r = 13 is printed as 2.7 G of 4.6 G."""
    costs = deit_small()
    assert costs.dense == 4_598_882_304
    assert int(costs.macs(np.full(12, 13))) == 2_706_063_680
    counts, merged = costs.entering([13] * 12)
    assert counts[-1] == 197 - 11 * 13
    assert merged == [13] * 12


@pytest.mark.parametrize("inflection", [-1.0, 0.0, 0.5])
def test_a_solved_schedule_is_just_within_the_budget(inflection: float) -> None:
    costs = deit_small()
    for share in (0.45, 0.5885, 0.65, 0.9, 0.99):
        found = solve(costs, share * costs.dense, inflection)
        assert found is not None
        assert share - 0.0015 < int(costs.macs(found)) / costs.dense <= share
    assert solve(costs, costs.dense, inflection).tolist() == [0] * 12  # type: ignore[union-attr]
    assert solve(costs, 0.05 * costs.dense, inflection) is None


def test_at_most_half_is_merged() -> None:
    costs = deit_small()
    counts, merged = costs.entering([1000] * 12)
    assert counts[:4] == [197, 99, 50, 26]
    assert merged[:3] == [98, 49, 24]
    assert int(costs.macs(np.array(merged))) == int(costs.macs(np.full(12, 1000)))
