"""How a batch is spread over processes, what can't be spread, and what is no longer the same when it is."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch
from pydantic import BaseModel

from usdcore.engine.buckets import running_statistics
from usdcore.errors import UsdcoreError
from usdcore.hooks.config import Beside, PluginConfig
from usdcore.hooks.reference import field_references

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from torch import Tensor, nn

    from usdcore.engine.processes import Processes
    from usdcore.recipe import Recipe


def rows_of(batch_size: int, rank: int, world: int) -> list[int]:
    """The rows of each batch that a process takes, as many in each.

    Where their number is even, half of them come from the front and their mirror images from the back: mixup pairs row
    i with the i-th from the end, so each pair is in one process, in its place. Else they are a run of rows.
    """
    number = batch_size // world
    if number % 2:
        return list(range(rank * number, (rank + 1) * number))
    front = range(rank * number // 2, (rank + 1) * number // 2)
    return [*front, *(batch_size - 1 - row for row in reversed(front))]


def require_spread(recipe: Recipe, train_images: int, world: int) -> None:
    """Errors: a batch that so many processes can't share evenly, or in which a plugin's options have no place."""
    if world == 1:
        return
    size = min(recipe.data.batch_size, train_images)
    mixes = any(train.mixup > 0 or train.cutmix > 0 for train in map(recipe.train_for, recipe.phases))
    step = 2 * world if mixes else world
    if size % step:
        are_all = train_images < recipe.data.batch_size
        sizes = [size - size % step, *([] if are_all else [size - size % step + step])]
        fit = " or ".join(f"data.batch_size {n}" for n in sizes if n)
        pairs = ", in pairs of images that are mixed" if mixes else ""
        few = " (all that there are)" if are_all else ""
        msg = (
            f"data.batch_size: a step's {size} images{few} can't be shared evenly by {world} processes{pairs}; use "
            f"{fit + ', or ' if fit else ''}another number of processes"
        )
        raise UsdcoreError(msg)
    epochs = sum(phase.epochs for phase in recipe.phases)
    local = Beside(size // world, epochs, epochs)
    whole = replace(local, batch_size=recipe.data.batch_size)
    for config in _options(recipe):
        known = set(config.mistakes(whole))
        for option, text in config.mistakes(local):
            if (option, text) not in known:
                own = f"each of {world} processes has {size // world} of a step's {size} images, and splits these"
                msg = f"{config.use}.{option}: {text}; {own}"
                raise UsdcoreError(msg)


def notes(recipe: Recipe, processes: Processes, batch_size: int) -> list[str]:
    """What a run under several processes says at its start."""
    if processes.world == 1:
        return []
    own = batch_size // processes.world
    lines = [f"{processes.world} processes, each with {own} of the {batch_size} images of a step"]
    names = list(dict.fromkeys(s.use for phase in recipe.phases for s in phase.strategies if _splits(s)))
    if names:
        lines.append(f"{', '.join(names)}: groups are split within each process's {own} images")
    return lines


def batch_norm_warning(model: nn.Module, processes: Processes, batch_size: int) -> str | None:
    """What to warn of where BatchNorm sees a part of the batch only."""
    if processes.world == 1 or not running_statistics(model):
        return None
    own = batch_size // processes.world
    return (
        f"this model has BatchNorm, which in training normalises over the {own} images of its own process and not over "
        f"the {batch_size} of a step; its running statistics are averaged over the {processes.world} processes"
    )


class OwnDraws:
    """While it is open, what a forward of the model draws after its gates without input is of `seed` (dropout, drop
    path, the noise of groups): another in each process. Afterwards all go on together, as if nothing had been drawn.
    """

    def __init__(self, model: nn.Module, seed: int, device: torch.device) -> None:
        self.model, self.seed, self.device = model, seed, device
        self._saved: list[tuple[Callable[[Tensor], Any], Tensor]] = []

    def __enter__(self) -> None:
        # Hooks run in their order, and the gates' own stands before this one.
        self._handle = self.model.register_forward_pre_hook(self._switch)

    def __exit__(self, *error: object) -> None:
        self._handle.remove()
        for restore, state in self._saved:
            restore(state)

    def _switch(self, module: nn.Module, args: Any) -> None:
        if self._saved:
            return
        self._saved.append((torch.set_rng_state, torch.get_rng_state()))
        if self.device.type == "cuda":
            device = self.device
            state = torch.cuda.get_rng_state(device)
            self._saved.append((lambda kept: torch.cuda.set_rng_state(kept, device), state))
        torch.manual_seed(self.seed)


def _options(recipe: Recipe) -> Iterator[PluginConfig]:
    """Every strategy's options, and those of the plugins in them; inherited ones once."""
    seen: list[PluginConfig] = []

    def inside(value: Any) -> Iterator[PluginConfig]:
        if isinstance(value, PluginConfig) and value not in seen:
            seen.append(value)
            yield value
        if isinstance(value, BaseModel):
            for key in type(value).model_fields:
                yield from inside(getattr(value, key))
        elif isinstance(value, list | tuple):
            for item in value:
                yield from inside(item)

    for phase in recipe.phases:
        yield from inside(phase.strategies)


def _splits(options: BaseModel) -> bool:
    """Whether a strategy cuts batches into groups: it has an option that is a split."""
    return any(ref.kind == "split" for field in type(options).model_fields.values() for ref in field_references(field))
