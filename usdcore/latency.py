"""Latency of several models side by side: interleaved rounds, so that a busy machine disturbs all of them alike."""

from __future__ import annotations

import contextlib
import gc
import random
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from usdcore.errors import UsdcoreError
from usdcore.machine import device_words, keep_buffers

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    import numpy.typing as npt
    from torch import Tensor, nn

# One round of one model lasts about this long: far above the timer's resolution, short enough that all models of a
# round see the same state of the machine.
ROUND_SECONDS = 0.03
WARM_UP_SECONDS = 0.05
MAX_ITERATIONS = 10_000
LEAST_ROUNDS = 3
SEED = 0


@dataclass(frozen=True)
class Timing:
    """How to time: up to `rounds` rounds a batch size (1 or more, each about 30 ms a model, or one call of a slower
    one), no new one after `seconds` but at least 3.

    `threads` of torch's pool, None leaves it as it is. Events on the stream time an accelerator, `clock` (seconds) all
    else.
    """

    rounds: int = 20
    seconds: float | None = None
    threads: int | None = None
    device: torch.device | str = "cpu"
    clock: Callable[[], float] = time.perf_counter


def measure_latency(
    models: Mapping[str, nn.Module],
    input_shape: Sequence[int],
    batch_sizes: Sequence[int],
    timing: Timing | None = None,
    inputs: Tensor | None = None,
    after: Callable[[str, int], None] | None = None,
) -> dict[str, list[dict[str, Any]]]:
    """Time the forward pass of every model at every batch size, in eval mode under `inference_mode`.

    A round times each model once (A B C, B C A, ...) on the same batch, after calls that are not timed; the ratio to
    the first model is taken within a round, then its median over rounds. Gated models depend on what they see, so give
    real images: each round takes the next `batch_size` of them, starting over at the end. Models come back in the mode
    and on the device they had. Large buffers are kept for all models alike from here on (`machine.keep_buffers`).

    Args:
        models: By name; the first one is what the ratios refer to.
        input_shape: (C, H, W) of one image.
        batch_sizes: Images per call.
        timing: How long, where and with how many threads.
        inputs: Images [N, C, H, W]; None takes seeded normal noise.
        after: Called with a model's name and the batch size when a round has timed it: what its last forward left
            behind (the decisions of gates) is still there.

    Returns:
        For each model one row per batch size: `batch_size`, `median_ms` and `iqr_ms` (per batch), `ratio_to_dense` and
        its `ratio_iqr`, and the conditions `rounds`, `dtype`, `device`, `threads`.

    Raises:
        UsdcoreError: nothing to measure, wrong shapes, or a batch that does not fit into the device's memory.
    """
    timing = timing or Timing()
    _check(models, input_shape, batch_sizes, timing.rounds, inputs)
    keep_buffers()
    device = torch.device(timing.device)
    images_NCHW = _images(input_shape, max(batch_sizes), inputs)
    rows: dict[str, list[dict[str, Any]]] = {name: [] for name in models}
    with _threads(timing.threads) as threads, _evaluating(models, device), torch.inference_mode(), _no_collection():
        for batch_size in batch_sizes:
            try:
                seconds_RM = _rounds(models, images_NCHW, batch_size, timing, after)
            except torch.OutOfMemoryError as error:
                raise UsdcoreError(
                    f"latency: a batch of {batch_size} does not fit into the memory of {device}; "
                    "give smaller batch sizes"
                ) from error
            ratio_RM = seconds_RM / seconds_RM[:, :1]
            for column, (name, model) in enumerate(models.items()):
                low, median, high = np.percentile(1e3 * seconds_RM[:, column], (25, 50, 75))
                least, ratio, most = np.percentile(ratio_RM[:, column], (25, 50, 75))
                rows[name].append(
                    {
                        "batch_size": batch_size,
                        "median_ms": float(median),
                        "iqr_ms": float(high - low),
                        "ratio_to_dense": float(ratio),
                        "ratio_iqr": float(most - least),
                        "rounds": len(seconds_RM),
                        "dtype": str(dtype_of(model)).removeprefix("torch."),
                        "device": device_words(device) if device.type == "cuda" else str(device),
                        "threads": threads,
                    }
                )
    return rows


def dtype_of(model: nn.Module) -> torch.dtype:
    """The floating type of a model's parameters."""
    found = (parameter.dtype for parameter in model.parameters() if parameter.is_floating_point())
    return next(found, torch.get_default_dtype())


def _rounds(
    models: Mapping[str, nn.Module],
    images_NCHW: Tensor,
    batch_size: int,
    timing: Timing,
    after: Callable[[str, int], None] | None,
) -> npt.NDArray[np.float64]:
    """Seconds per call [rounds, models]."""
    device, rounds = torch.device(timing.device), []
    iterations: dict[str, int] = {}
    shuffled = random.Random(SEED)
    started = timing.clock()
    for r in range(timing.rounds):
        index_B = (r * batch_size + torch.arange(batch_size)) % len(images_NCHW)
        batch_BCHW, row = images_NCHW[index_B].to(device), dict.fromkeys(models, 0.0)
        for name in shuffled.sample(list(models), len(models)):  # whoever runs first finds other caches
            model = models[name]
            given = batch_BCHW.to(dtype_of(model))
            if name not in iterations:
                iterations[name] = _warm(model, given, timing)
            elif iterations[name] > 1:
                model(given)  # the model before it has the caches
            row[name] = _seconds(model, given, iterations[name], timing) / iterations[name]
            if after is not None:
                after(name, batch_size)
        rounds.append(list(row.values()))
        if timing.seconds is not None and len(rounds) >= LEAST_ROUNDS and timing.clock() - started > timing.seconds:
            break
    return np.array(rounds)


def _warm(model: nn.Module, batch: Tensor, timing: Timing) -> int:
    """Call a model until it runs as it will from then on (compiled, its memory there, clocks up); how many calls make a
    round.
    """
    started = timing.clock()
    model(batch)
    while (once := _seconds(model, batch, 1, timing)) + timing.clock() - started < WARM_UP_SECONDS:
        continue
    return min(max(round(ROUND_SECONDS / max(once, 1e-9)), 1), MAX_ITERATIONS)


def _seconds(model: nn.Module, batch: Tensor, iterations: int, timing: Timing) -> float:
    """What so many calls take together."""
    if torch.device(timing.device).type == "cuda":
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))  # type: ignore[no-untyped-call]
        torch.cuda.synchronize()
        begin.record()
        for _ in range(iterations):
            model(batch)
        end.record()
        end.synchronize()
        return 1e-3 * float(begin.elapsed_time(end))
    started = timing.clock()
    for _ in range(iterations):
        model(batch)
    return timing.clock() - started


def _check(
    models: Mapping[str, nn.Module],
    input_shape: Sequence[int],
    batch_sizes: Sequence[int],
    rounds: int,
    inputs: Tensor | None,
) -> None:
    if not models:
        raise UsdcoreError(
            "latency: no model was given; give one or more, the first is what the others are compared with"
        )
    if not batch_sizes or min(batch_sizes) < 1:
        raise UsdcoreError(f"latency: batch sizes {list(batch_sizes)} must be one or more numbers from 1 up")
    if rounds < 1:
        raise UsdcoreError(f"latency: rounds is {rounds}; at least one round is needed, 20 give a steady median")
    if inputs is not None and (len(inputs) == 0 or tuple(inputs.shape[1:]) != tuple(input_shape)):
        raise UsdcoreError(
            f"latency: inputs have the shape {tuple(inputs.shape)}; "
            f"images of shape (N, {', '.join(map(str, input_shape))}) are needed, with N from 1 up"
        )


def _images(input_shape: Sequence[int], largest_batch: int, inputs: Tensor | None) -> Tensor:
    if inputs is not None:
        return inputs
    return torch.randn(largest_batch, *input_shape, generator=torch.Generator().manual_seed(SEED))


@contextlib.contextmanager
def _threads(wanted: int | None) -> Iterator[int]:
    """Torch's pool with so many threads; afterwards as it was."""
    before = torch.get_num_threads()
    if wanted is not None:
        torch.set_num_threads(wanted)
    try:
        yield torch.get_num_threads()
    finally:
        torch.set_num_threads(before)


@contextlib.contextmanager
def _no_collection() -> Iterator[None]:
    """No garbage is collected in the middle of a timing."""
    was_on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_on:
            gc.enable()


@contextlib.contextmanager
def _evaluating(models: Mapping[str, nn.Module], device: torch.device) -> Iterator[None]:
    """Every model in eval mode on `device`; afterwards every module has its mode and every model its device back."""
    modes = [(module, module.training) for model in models.values() for module in model.modules()]
    homes = [(model, next((p.device for p in model.parameters()), None)) for model in models.values()]
    try:
        for model in models.values():
            model.to(device).eval()
        yield
    finally:
        # Parents come before their children in `modules()`, so a child's own mode has the last word.
        for module, training in modes:
            module.train(training)
        for model, home in homes:
            if home is not None:
                model.to(home)
