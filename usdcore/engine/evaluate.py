"""Top-1 and executed MACs of a model on real images, at the batch size and scope that are asked for."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import torch

from usdcore.engine.data import eval_loader
from usdcore.measure import Execution, Meter
from usdcore.runner import gating_of

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from torch import Tensor, nn
    from torch.utils.data import Dataset

    from usdcore.gates import Gating
    from usdcore.units.types import Units

Order = Literal["shuffled", "sorted"]


@dataclass(frozen=True)
class Evaluation:
    """`top1` in percent, and what was executed."""

    top1: float
    execution: Execution


@torch.inference_mode()
def evaluate(model: nn.Module, units: Units, loader: Iterable[Any], amp: Callable[[], Any]) -> Evaluation:
    """Evaluate on batches of (images [B, C, H, W], labels [B])."""
    model.eval()
    device = next(model.parameters()).device
    gating = gating_of(model)
    meter = Meter(units, gating)
    hits = torch.zeros((), dtype=torch.int64, device=device)
    for images, labels in loader:
        with amp():
            output = model(images.to(device, non_blocking=True))
        hits += (output.argmax(dim=1) == labels.to(device)).sum()
        meter.add(len(images))
    execution = meter.result()
    return Evaluation(100.0 * int(hits) / execution.num_images, execution)


def set_scope(gating: Gating | None, scope: Literal["batch", "sample"]) -> None:
    """Let the dynamic gates decide for the whole batch or for each sample."""
    for gate in gating.all() if gating is not None else ():
        if gate.scope != "static":
            gate.scope = scope


def evaluation_loader(dataset: Dataset[Any], batch_size: int, seed: int, order: Order, workers: int) -> Iterable[Any]:
    """The evaluation images shuffled by seed, or sorted by class (the hardest order for a decision shared by a
    batch).
    """
    return eval_loader(dataset, batch_size, seed=seed, sort_by_class=order == "sorted", workers=workers)


def calibration_batches(
    dataset: Dataset[Any], batch_size: int, seed: int, images: int, device: torch.device
) -> Callable[[], Iterator[Tensor]]:
    """Batches of training images with evaluation transforms, a seeded subset; full batches only where there is one.

    The images are decoded once and kept: calibration reads them some twenty times.
    """
    loader = eval_loader(dataset, batch_size, seed=seed, subset=images)
    held = [batch for batch, _ in loader]
    if len(held) > 1 and len(held[-1]) < batch_size:
        held.pop()

    def batches() -> Iterator[Tensor]:
        for batch in held:
            yield batch.to(device, non_blocking=True)

    return batches
