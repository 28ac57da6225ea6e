"""The time of a call by its number of images: measured whole where there is time, else on the line of smaller ones."""

from __future__ import annotations

import pytest
import torch

from usdcore.engine.pace import Clock, Pace, pace


class World:
    """A clock that only calls move: each by `fixed` and `each` an image."""

    def __init__(self, fixed: float, each: float, most: int = 10**9) -> None:
        self.fixed, self.each, self.most = fixed, each, most
        self.now, self.calls = 0.0, list[int]()

    def call(self, images: int) -> None:
        if images > self.most:
            raise torch.OutOfMemoryError
        self.calls.append(images)
        self.now += self.fixed + self.each * images

    def pace(self, largest: int, seconds: float, most: int = 10**9) -> Pace:
        clock = Clock(torch.device("cpu"), lambda: self.now)
        return pace(self.call, largest, seconds, clock, lambda size: size <= most)


def test_whole_where_there_is_time() -> None:
    world = World(0.5, 0.01)
    found = world.pace(64, 1000)
    assert found.sizes == (16, 64)
    assert found.of(64) == pytest.approx(1.14)
    assert found.calls >= 6


def test_on_the_line_where_there_is_not() -> None:
    world = World(0.5, 0.25)
    found = world.pace(1024, 40)
    assert max(world.calls) == max(found.sizes) < 64
    assert found.of(1024) == pytest.approx(256.5)
    assert world.now < 60


def test_what_grows_faster_than_the_images_costs_nothing_by_itself() -> None:
    assert World(-0.1, 0.1).pace(8, 100).fixed == 0


def test_a_call_that_is_too_slow_for_anything_else() -> None:
    world = World(0.0, 10.0)
    found = world.pace(64, 1)
    assert found == Pace(0.0, 10.0, (2,), 2)


@pytest.mark.parametrize("largest", [1, 2, 3])
def test_few_images(largest: int) -> None:
    found = World(1.0, 1.0).pace(largest, 100)
    assert max(found.sizes) == largest
    assert found.of(largest) == pytest.approx(1 + largest)


def test_memory_bounds_the_calls() -> None:
    assert max(World(0.0, 0.001).pace(256, 100, most=40).sizes) == 32
    assert max(World(0.0, 0.001, most=40).pace(256, 100).sizes) == 32
