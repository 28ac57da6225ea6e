"""An estimate of the most memory that training takes, in parts that can be counted.

What is kept for the backward is seen by autograd's own hooks on tensors that it saves: every storage once, the model's
own weights not at all. Buffers that come and go within one operation are in none of the parts.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any

import torch

from usdcore.engine.preflight import trial_step

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from torch import Tensor, nn

    from usdcore.engine.fit import Fit
    from usdcore.recipe import Recipe, TrainConfig
    from usdcore.teachers import Teacher

_SIDE = 64
"""Of the matrix that an optimizer is tried on: what it keeps for a row or a column is small beside what it keeps for
each weight.
"""


@dataclass(frozen=True)
class Memory:
    """Bytes, on one device. `activations` is what is kept for the backward of a whole step; None: not looked at."""

    weights: int
    gradients: int
    optimizer: int
    average: int
    teachers: int
    activations: int | None = None
    peak: int | None = None
    source: str = "counted for the whole model; activations are not in it"

    def as_json(self) -> dict[str, Any]:
        """For `usdcore plan`."""
        return asdict(self)

    def with_activations(self, activations: int, source: str) -> Memory:
        """The same, and their sum as the peak."""
        parts = (self.weights, self.gradients, self.optimizer, self.average, self.teachers, activations)
        return replace(self, activations=activations, peak=sum(parts), source=source)


def counted(recipe: Recipe, model: nn.Module, teachers: Mapping[str, Teacher]) -> Memory:
    """Before anything is trained: the whole model, with the optimizer that keeps most and an average where a phase has
    one.
    """
    weights = _bytes(model.parameters())
    trains = [recipe.train_for(phase) for phase in recipe.phases]
    return Memory(
        weights=weights,
        gradients=weights,
        optimizer=round(weights * max(_state_ratio(train) for train in trains)),
        average=weights * any(train.ema for train in trains),
        teachers=sum(_bytes(teacher.model.parameters()) for teacher in teachers.values()),
    )


def in_use(fit: Fit) -> Memory:
    """Of a stage that has taken a step."""
    optimizers = (fit.optimizer, *((fit.strategy_optimizer,) if fit.strategy_optimizer else ()))
    teachers = fit.session.teachers.values()
    return Memory(
        weights=_bytes(fit.model.parameters()),
        gradients=_bytes(p for p in fit.model.parameters() if p.requires_grad),
        optimizer=sum(_state(optimizer) for optimizer in optimizers),
        average=_bytes(fit.ema.module.parameters()) if fit.ema is not None else 0,
        teachers=sum(_bytes(teacher.model.parameters()) for teacher in teachers),
    )


class Saved:
    """While it is open, notes what autograd keeps for the backward; `bytes` without what `model` itself holds."""

    def __init__(self, model: nn.Module) -> None:
        self.model, self._seen = model, dict[int, int]()
        self._hooks = torch.autograd.graph.saved_tensors_hooks(self._pack, lambda kept: kept)

    def __enter__(self) -> Saved:
        self._hooks.__enter__()
        return self

    def __exit__(self, *error: object) -> None:
        self._hooks.__exit__(*error)

    @property
    def bytes(self) -> int:
        """Kept at once by the forward, as nothing is freed before the backward."""
        own = {p.untyped_storage().data_ptr() for p in self.model.parameters()}
        return sum(size for place, size in self._seen.items() if place not in own)

    def _pack(self, tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        self._seen[storage.data_ptr()] = storage.nbytes()
        return tensor.detach()  # the tensor itself would be held by its own graph


def _bytes(tensors: Iterable[Tensor]) -> int:
    return sum(tensor.nbytes for tensor in tensors)


def _state_ratio(train: TrainConfig) -> float:
    """What the optimizer keeps for each byte of a weight."""
    optimizer = trial_step(train, _SIDE)
    (weight,) = optimizer.param_groups[0]["params"]
    return _state(optimizer) / float(weight.nbytes)


def _state(optimizer: torch.optim.Optimizer) -> int:
    kept = (value for own in optimizer.state.values() for value in own.values())
    return _bytes(value for value in kept if isinstance(value, torch.Tensor))
