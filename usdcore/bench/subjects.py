"""What is timed: the dense model, the shrunk one with every branch on, and the shrunk one that skips."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from usdcore.artifact import create, load_with_plan
from usdcore.costs import Cost, cost
from usdcore.errors import UsdcoreError
from usdcore.measure import Meter
from usdcore.runner import detach, gating_of
from usdcore.units import find_units

if TYPE_CHECKING:
    from pathlib import Path

    from torch import Tensor, nn

    from usdcore.gates import Gating
    from usdcore.plans import Base, Plan
    from usdcore.units.types import Units

DENSE, SHRUNK, SKIPPING = "dense", "shrunk", "skipping"
SEED = 0


@dataclass
class Subject:
    """One model to time; `macs` per image with everything on, gate networks included."""

    name: str
    model: nn.Module
    units: Units
    cost: Cost
    gating: Gating | None = None

    @property
    def macs(self) -> int:
        """Per image, every branch on."""
        return self.cost.macs + (0 if self.gating is None else self.gating.count_macs())

    def meter(self) -> Meter | None:
        """Counts what its forwards execute; None where every one executes the same."""
        return None if self.gating is None else Meter(self.units, self.gating)


@dataclass(frozen=True)
class Place:
    """What RUN names: a model's file, and the run's folder that it lies in, where it lies in one."""

    file: Path
    folder: Path | None

    @classmethod
    def of(cls, run: Path) -> Place:
        """Errors: a folder without a model."""
        file = run / "model.safetensors" if run.is_dir() else run
        if not file.is_file():
            what = "holds no model.safetensors, so no run came so far there" if run.is_dir() else "no such file"
            msg = f"{run}: {what}; give the folder of a run (see usdcore run), or a model.safetensors"
            raise UsdcoreError(msg)
        is_run = file.name == "model.safetensors" and (file.parent / "recipe.yaml").is_file()
        return cls(file, file.parent if is_run else None)


def subjects_of(file: Path, scope: str | None = None) -> tuple[list[Subject], Plan]:
    """The models of one file, the dense one first, and its plan. What is the same as the one before is left out.

    The dense model is made anew with random weights, on which its time does not depend. `scope` (batch or sample) is
    for gates that depend on the input; None leaves the file's own. Errors: as `load`'s.
    """
    model, plan = load_with_plan(file)
    assert plan.base is not None
    torch.manual_seed(SEED)
    dense = create(plan.base).to(next(model.parameters()).dtype)
    subjects = [_subject(DENSE, dense, plan.base)]
    skipping, gating = model, gating_of(model)
    if gating is not None:
        _set_scope(gating, scope)
        model = copy.deepcopy(model)
        detach(model)
    if plan.kept_groups or plan.drops:
        subjects.append(_subject(SHRUNK, model, plan.base))
    if gating is not None:
        units = _subject(SHRUNK, model, plan.base).units
        subjects.append(Subject(SKIPPING, skipping, units, cost(units), gating))
    return subjects, plan


def scopes(gating: Gating | None) -> list[str]:
    """For what its gates decide in evaluation: the batch, each sample, or both."""
    return sorted({gate.scope for gate in gating.all() if gate.scope != "static"}) if gating is not None else []


def images_of(place: Place, base: Base, number: int, wanted: str) -> tuple[Tensor, str]:
    """Images [N, C, H, W] to time on, and what they are, in words.

    `wanted` is `data` (the evaluation images of the run's recipe; noise where they can't be had, with the reason),
    or `random`. Gates decide by what they see, so on noise they may skip more or less than on images.
    """
    reason = "as asked" if wanted == "random" else "there is no recipe beside the model"
    if wanted == "data" and place.folder is not None:
        try:
            return _from_recipe(place.folder, number)
        except UsdcoreError as error:
            reason = f"the recipe's data can't be had: {error}"
    generator = torch.Generator().manual_seed(SEED)
    noise = torch.randn(number, *base.input_shape, generator=generator)
    return noise, f"{number} images of normal noise ({reason}); gates decide by content, so real images may differ"


def _from_recipe(folder: Path, number: int) -> tuple[Tensor, str]:
    from usdcore.engine.evaluate import evaluation_loader
    from usdcore.engine.setup import load_data
    from usdcore.recipe import load_recipe

    recipe = load_recipe(folder / "recipe.yaml")
    data = load_data(recipe)
    held: list[Any] = []
    for images, _ in evaluation_loader(data.test, min(number, 64), recipe.seed, "shuffled", 0):
        held.append(images)
        if sum(map(len, held)) >= number:
            break
    found = torch.cat(held)[:number]
    return found, f"{len(found)} evaluation images, shuffled ({data.description})"


def _subject(name: str, model: nn.Module, base: Base) -> Subject:
    units = find_units(model, torch.zeros(1, *base.input_shape, device="meta"))
    return Subject(name, model, units, cost(units))


def _set_scope(gating: Gating, scope: str | None) -> None:
    for gate in gating.all():
        if gate.scope in ("batch", "sample") and scope is not None:
            gate.scope = "sample" if scope == "sample" else "batch"
