"""Top-1 and executed MACs of a model on real images, at the batch size and scope that are asked for.

Several processes take the batches in turn (rank r has batches r, r + world, ...), whole ones, as decisions are shared
within a batch. What each batch gave is put together in the data's order, so every process comes to the numbers that
one alone would have, to the last bit.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import torch

from usdcore.engine.data import eval_loader
from usdcore.engine.processes import ALONE
from usdcore.errors import UsdcoreError
from usdcore.measure import Execution, Meter
from usdcore.runner import gating_of

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from torch import Tensor, nn
    from torch.utils.data import Dataset

    from usdcore.engine.processes import Processes
    from usdcore.gates import Gating
    from usdcore.units.types import Units

Order = Literal["shuffled", "sorted"]


@dataclass(frozen=True)
class Evaluation:
    """`top1` in percent, and what was executed."""

    top1: float
    execution: Execution


@torch.inference_mode()
def evaluate(
    model: nn.Module, units: Units, loader: Iterable[Any], amp: Callable[[], Any], processes: Processes = ALONE
) -> Evaluation:
    """Evaluate on batches of (images [B, C, H, W], labels [B]): all of them, or this process's."""
    model.eval()
    device = next(model.parameters()).device
    meter, hits, batches = Meter(units, gating_of(model)), [], []
    for images, labels in loader:
        with amp():
            output = model(images.to(device, non_blocking=True))
        hits.append((output.argmax(dim=1) == labels.to(device)).sum())
        batches.append(_metered(meter, len(images)))
    counts = torch.stack(hits).tolist() if hits else []
    together = _in_turn(processes.exchange([[*batch, hit] for batch, hit in zip(batches, counts, strict=True)]))
    execution = _sum(together)
    return Evaluation(100.0 * sum(hit for *_, hit in together) / execution.num_images, execution)


@torch.inference_mode()
def execute(
    model: nn.Module,
    units: Units,
    gating: Gating | None,
    batches: Iterable[Tensor],
    amp: Callable[[], Any],
    processes: Processes,
) -> Execution:
    """As `usdcore.measure.execute`, of which every process runs its own batches. Errors: there are none at all."""
    was_training = model.training
    model.eval()
    meter, found = Meter(units, gating), []
    for images in batches:
        with amp():
            model(images)
        found.append(_metered(meter, len(images)))
    model.train(was_training)
    together = _in_turn(processes.exchange(found))
    if not together:
        msg = "there are no images to measure gate rates on: give more calibration images"
        raise UsdcoreError(msg)
    return _sum(together)


def _metered(meter: Meter, batch_size: int) -> list[Any]:
    """Of the last forward: its MACs, its images, for each branch for how many of them it ran, and what is summed of
    their tokens.
    """
    meter.on, meter.tokens = {}, {}
    meter.add(batch_size)
    return [*meter.batches[-1], meter.on, meter.tokens]


def _in_turn(found: list[list[Any]]) -> list[Any]:
    """The batches of all processes in the data's order."""
    longest = max(len(own) for own in found)
    return [own[place] for place in range(longest) for own in found if place < len(own)]


def _sum(batches: list[Any]) -> Execution:
    images = sum(size for _, size, *_ in batches)
    rates: dict[str, float] = {}
    tokens: dict[str, tuple[float, float]] = {}
    for _, _, on, moments, *_ in batches:
        for site, number in on.items():
            rates[site] = rates.get(site, 0.0) + number
        for site, (first, second) in moments.items():
            before = tokens.get(site, (0.0, 0.0))
            tokens[site] = before[0] + first, before[1] + second
    per_batch = tuple(macs / size for macs, size, *_ in batches)
    total = sum(macs for macs, *_ in batches)
    rates = {site: on / images for site, on in rates.items()}
    means = {site: (first / images, second / images) for site, (first, second) in tokens.items()}
    return Execution(total / images, rates, per_batch, images, means)


def set_scope(gating: Gating | None, scope: Literal["batch", "sample"]) -> None:
    """Let the dynamic gates decide for the whole batch or for each sample."""
    for gate in gating.all() if gating is not None else ():
        if gate.scope in ("batch", "sample"):
            gate.scope = scope


def evaluation_loader(
    dataset: Dataset[Any], batch_size: int, seed: int, order: Order, workers: int, processes: Processes = ALONE
) -> Iterable[Any]:
    """The evaluation images shuffled by seed, or sorted by class (the hardest order for a decision shared by a
    batch); this process's batches of them.
    """
    turn = (processes.rank, processes.world)
    return eval_loader(dataset, batch_size, seed=seed, sort_by_class=order == "sorted", workers=workers, turn=turn)


def calibration_batches(
    dataset: Dataset[Any],
    batch_size: int,
    seed: int,
    images: int,
    device: torch.device,
    processes: Processes = ALONE,
) -> Callable[[], Iterator[Tensor]]:
    """Batches of training images with evaluation transforms, a seeded subset, of which this process has its own; full
    batches only where there is one.

    The images are decoded once and kept: calibration reads them some twenty times.
    """
    images = min(images, len(dataset))  # type: ignore[arg-type]
    if images > batch_size:
        images -= images % batch_size
    turn = (processes.rank, processes.world)
    held = [batch for batch, _ in eval_loader(dataset, batch_size, seed=seed, subset=images, turn=turn)]

    def batches() -> Iterator[Tensor]:
        for batch in held:
            yield batch.to(device, non_blocking=True)

    return batches
