from __future__ import annotations

from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from usdcore.report.frame import COLOURS, spread, styles

WANTED = st.lists(st.floats(0, 10, allow_nan=False), min_size=1, max_size=40)


def luminance(colour: str) -> float:
    parts = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    linear = [c / 12.92 if c <= 0.03928 else ((c + 0.055) / 1.055) ** 2.4 for c in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


@given(WANTED)
def test_labels_keep_their_order_and_their_distance(wanted):
    places = spread(wanted, 0.17, (0.0, 12.0))
    order = sorted(range(len(wanted)), key=lambda i: wanted[i])
    steps = [places[b] - places[a] for a, b in pairwise(order)]
    assert all(step >= 0.17 - 1e-9 for step in steps)
    assert min(places) >= -1e-9
    assert max(places) <= 12.0 + 1e-9


@given(st.lists(st.integers(0, 20), min_size=1, max_size=20, unique=True))
def test_labels_with_room_stay_where_they_are(wanted):
    assert spread([float(value) for value in wanted], 0.9, (0.0, 20.0)) == [float(value) for value in wanted]


def test_equal_marks_have_their_labels_around_them():
    assert sorted(spread([5.0, 5.0, 5.0], 1.0, (0.0, 10.0))) == [4.0, 5.0, 6.0]


def test_lines_can_be_told_apart_on_both_papers():
    assert len(set(styles(30))) == 30
    for colour in COLOURS:
        for paper in ("#ffffff", "#14171c"):
            dark, light = sorted((luminance(colour), luminance(paper)))
            assert (light + 0.05) / (dark + 0.05) >= 3, (colour, paper)
