"""How long a call takes by the number of images that it is given, found within a budget of time.

Where the whole batch takes too long, or does not fit into memory, two smaller ones tell what a call costs by itself (an
optimizer's step, the launches of kernels) and what each image adds; the whole one is on the line through them.
"""

from __future__ import annotations

import statistics
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from collections.abc import Callable

SMALL = 2
"""Images of the first call: BatchNorm needs two."""
GROWTH = 4
FEWEST, MOST = 2, 25
"""Timed calls of a batch size, the fewest where one call already takes long."""


@dataclass(frozen=True)
class Clock:
    """Seconds, by `now`, of calls on a device."""

    device: torch.device
    now: Callable[[], float] = time.perf_counter

    def of(self, call: Callable[[], object]) -> float:
        """Seconds that one call takes, with all that it started on the device."""
        self._wait()
        started = self.now()
        call()
        self._wait()
        return self.now() - started

    def _wait(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)


@dataclass(frozen=True)
class Pace:
    """`fixed` seconds a call and `each` an image; found from `calls` timed calls of these `sizes`."""

    fixed: float
    each: float
    sizes: tuple[int, ...]
    calls: int

    def of(self, images: int) -> float:
        """Seconds of one call."""
        return self.fixed + self.each * images


def pace(
    call: Callable[[int], object],
    largest: int,
    seconds: float,
    clock: Clock,
    fits: Callable[[int], bool] = lambda size: True,
) -> Pace:
    """The pace of `call(images)`, measured at `largest` images where that takes at most about `seconds` in all and
    `fits` allows it.

    Args:
        call: takes a number of images, from 1 up.
        largest: the number to know the time of.
        seconds: for all calls together; at least `FEWEST` calls of the smallest size are made.
        clock: measures.
        fits: whether a call of so many images may be tried, asked when smaller ones have been made.
    """
    ends = clock.now() + seconds
    first = size = min(SMALL, largest)
    call(first)  # what is made on the first call is not timed
    once = {size: clock.of(lambda: call(size))}
    while size < largest:
        more = min(GROWTH * size, largest)
        # The first growth tells what a call costs by itself; later ones must leave time for the timed calls.
        calls = 1 if len(once) == 1 else FEWEST + 1
        if clock.now() + calls * _line(once, 0).of(more) > ends or not fits(more):
            break
        try:
            once[more] = clock.of(lambda: call(more))  # noqa: B023 - called at once
        except torch.OutOfMemoryError:
            torch.cuda.empty_cache()
            break
        size = more
    below = min(size, max(first, size // GROWTH))
    sizes = tuple(dict.fromkeys((below, size)))
    taken: dict[int, list[float]] = {one: [once[one]] if one == first else [] for one in sizes}
    while not _is_over(taken[size], clock.now(), ends):
        for one in sizes:  # in turns, as a busy machine then disturbs both alike
            taken[one].append(clock.of(lambda: call(one)))  # noqa: B023
    at = {one: statistics.median(times) for one, times in taken.items()}
    return _line(at, sum(map(len, taken.values())))


def _is_over(taken: list[float], now: float, ends: float) -> bool:
    if len(taken) < FEWEST:
        return False
    return len(taken) >= MOST or now + max(taken) > ends


def _line(at: dict[int, float], calls: int) -> Pace:
    """Through the two largest sizes, neither part of it below 0; through one and the origin."""
    *_, small, large = (0, *sorted(at))
    if not small:
        return Pace(0.0, at[large] / large, (large,), calls)
    each = min(max(0.0, (at[large] - at[small]) / (large - small)), at[large] / large)
    return Pace(at[large] - each * large, each, (small, large), calls)
