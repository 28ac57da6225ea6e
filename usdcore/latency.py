"""Latency of several models side by side: interleaved rounds, so that a busy machine disturbs all of them alike."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch.utils.benchmark import Timer

from usdcore.errors import UsdcoreError

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from torch import Tensor, nn

# One round of one model lasts about this long: far above the timer's resolution, short enough that all models of a
# round see the same state of the machine.
ROUND_SECONDS = 0.03
MAX_ITERATIONS = 10_000
SEED = 0


def measure_latency(
    models: Mapping[str, nn.Module],
    input_shape: Sequence[int],
    batch_sizes: Sequence[int],
    repeats: int = 20,
    device: torch.device | str = "cpu",
    threads: int | None = None,
    inputs: Tensor | None = None,
) -> dict[str, list[dict[str, Any]]]:
    """Time the forward pass of every model at every batch size, in eval mode under `inference_mode`.

    A round times each model once (A B C, A B C, ...) on the same batch; the ratio to the first model is taken within a
    round, then its median over rounds. Gated models depend on what they see, so give real images: each round takes
    the next `batch_size` of them, starting over at the end. Models come back in the mode and on the device they had.

    Args:
        models: By name; the first one is what the ratios refer to.
        input_shape: (C, H, W) of one image.
        batch_sizes: Images per call.
        repeats: Rounds per batch size, 1 or more. Each costs about 30 ms per model, or three calls of a slower one.
        device: Where to run; an accelerator is synchronised before and after each timing (torch's `Timer` does it).
        threads: Of torch's pool during the timing; None leaves it as it is. Restored afterwards.
        inputs: Images [N, C, H, W]; None takes seeded normal noise.

    Returns:
        For each model one row per batch size: `batch_size`, `median_ms` and `iqr_ms` (per batch), `ratio_to_dense`,
        and the conditions `rounds`, `dtype`, `device`, `threads`.

    Raises:
        UsdcoreError: nothing to measure, wrong shapes, or a batch that does not fit into the device's memory.
    """
    _check(models, input_shape, batch_sizes, repeats, inputs)
    device = torch.device(device)
    num_threads = torch.get_num_threads() if threads is None else threads
    images_NCHW = _images(input_shape, max(batch_sizes), inputs)
    rows: dict[str, list[dict[str, Any]]] = {name: [] for name in models}
    with _evaluating(models, device), torch.inference_mode():
        for batch_size in batch_sizes:
            try:
                seconds_RM = _rounds(models, images_NCHW, batch_size, repeats, device, num_threads)
            except torch.OutOfMemoryError as error:
                raise UsdcoreError(
                    f"latency: a batch of {batch_size} does not fit into the memory of {device}; "
                    "give smaller batch sizes"
                ) from error
            ratio_RM = seconds_RM / seconds_RM[:, :1]
            for column, (name, model) in enumerate(models.items()):
                low, median, high = np.percentile(1e3 * seconds_RM[:, column], (25, 50, 75))
                rows[name].append(
                    {
                        "batch_size": batch_size,
                        "median_ms": float(median),
                        "iqr_ms": float(high - low),
                        "ratio_to_dense": float(np.median(ratio_RM[:, column])),
                        "rounds": repeats,
                        "dtype": str(_dtype(model)).removeprefix("torch."),
                        "device": _device_name(device),
                        "threads": num_threads,
                    }
                )
    return rows


def _rounds(
    models: Mapping[str, nn.Module],
    images_NCHW: Tensor,
    batch_size: int,
    repeats: int,
    device: torch.device,
    threads: int,
) -> np.ndarray[Any, np.dtype[np.float64]]:
    """Seconds per call [rounds, models]."""
    seconds_RM = np.empty((repeats, len(models)))
    iterations: dict[str, int] = {}
    for r in range(repeats):
        index_B = (r * batch_size + torch.arange(batch_size)) % len(images_NCHW)
        batch_BCHW = images_NCHW[index_B].to(device)
        for column, (name, model) in enumerate(models.items()):
            scope = {"model": model, "batch": batch_BCHW.to(_dtype(model))}
            timer = Timer("model(batch)", globals=scope, num_threads=threads)
            if name not in iterations:
                # `timeit` makes two warm-up calls of its own before it times.
                once = timer.timeit(1).median
                iterations[name] = min(max(round(ROUND_SECONDS / once), 1), MAX_ITERATIONS)
            seconds_RM[r, column] = timer.timeit(iterations[name]).median
    return seconds_RM


def _check(
    models: Mapping[str, nn.Module],
    input_shape: Sequence[int],
    batch_sizes: Sequence[int],
    repeats: int,
    inputs: Tensor | None,
) -> None:
    if not models:
        raise UsdcoreError(
            "latency: no model was given; give one or more, the first is what the others are compared with"
        )
    if not batch_sizes or min(batch_sizes) < 1:
        raise UsdcoreError(f"latency: batch sizes {list(batch_sizes)} must be one or more numbers from 1 up")
    if repeats < 1:
        raise UsdcoreError(f"latency: repeats is {repeats}; at least one round is needed, 20 give a steady median")
    if inputs is not None and (len(inputs) == 0 or tuple(inputs.shape[1:]) != tuple(input_shape)):
        raise UsdcoreError(
            f"latency: inputs have the shape {tuple(inputs.shape)}; "
            f"images of shape (N, {', '.join(map(str, input_shape))}) are needed, with N from 1 up"
        )


def _images(input_shape: Sequence[int], largest_batch: int, inputs: Tensor | None) -> Tensor:
    if inputs is not None:
        return inputs
    return torch.randn(largest_batch, *input_shape, generator=torch.Generator().manual_seed(SEED))


def _dtype(model: nn.Module) -> torch.dtype:
    found = (parameter.dtype for parameter in model.parameters() if parameter.is_floating_point())
    return next(found, torch.get_default_dtype())


def _device_name(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else str(device)


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
