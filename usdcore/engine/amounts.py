"""How much there is to do, by count: images, optimisation steps, MACs of a step, passes over evaluation images."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from usdcore.engine.data import steps_per_epoch
from usdcore.engine.random_control import shuffles, training

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from usdcore.recipe import Recipe

IMAGENET = (1_281_167, 50_000)
"""Training and validation images of ImageNet-1k (Russakovsky et al. 2015, Table 2)."""
IMAGENET_CLASSES = 1000
ASSUMED = "assumed to be ImageNet-1k's: 1000 classes, and no data here to count"
BACKWARD = 2
"""MACs of a backward over those of its forward: one product for the inputs' gradient, one for the weights'."""
CALIBRATIONS = 20
"""Passes over the calibration images that a search for a threshold takes, about."""


@dataclass(frozen=True)
class Images:
    """Images to train and to evaluate on; None: not known. `source` says in words where the numbers are from."""

    train: int | None
    evaluation: int | None
    source: str

    @property
    def is_known(self) -> bool:
        """Whether both are."""
        return self.train is not None and self.evaluation is not None


@dataclass(frozen=True)
class Pass:
    """So many images through a model in evaluation mode, at a batch size; `index` is the phase that leaves the model
    whose time it is taken to need.
    """

    index: int
    images: int
    batch_size: int


def count_images(recipe: Recipe, stated: tuple[int, ...] = ()) -> Images:
    """Of the data, which need not be here: as `stated` (training, evaluation), else as the data source knows them, else
    ImageNet-1k's, if that is what 1000 classes in colour without data stand for. Errors: those of listing files that
    are here.
    """
    (train, evaluation), source = recipe.data.known_images(), "known to the data source"
    if stated:
        train, evaluation, source = stated[0], stated[1] if stated[1:] else evaluation, "as stated"
    if train is None or evaluation is None:
        if recipe.model.num_classes != IMAGENET_CLASSES or recipe.data.channels != 3:
            return Images(train, evaluation, "not known: the data are not here")
        train, evaluation = train or IMAGENET[0], evaluation or IMAGENET[1]
        source = "as stated, else " * bool(stated) + ASSUMED
    return Images(train, evaluation, source)


def add_steps(found: dict[str, Any], recipe: Recipe, images: Images) -> None:
    """To what a dry run found: `images`, `controls`, for each of them and each phase its `steps` (None: not known) and
    the MACs of one, and the `steps` of all.
    """
    size = recipe.data.batch_size
    each = None if images.train is None else steps_per_epoch(images.train, size)
    rows = size if images.train is None else min(size, images.train)
    found["images"] = {"train": images.train, "evaluation": images.evaluation, "source": images.source}
    found["batch_size"] = rows
    controls = [
        {"name": f"control {name}", "epochs": _epochs(name, recipe), "macs_per_image": _macs(name, found, recipe)}
        for name in recipe.controls
    ]
    for stage in (*found["phases"], *controls):
        stage["steps_per_epoch"] = each
        stage["steps"] = None if each is None else each * stage["epochs"]
        stage["macs_per_step"] = stage["macs_per_image"] * rows
    found["controls"] = controls
    steps = [stage["steps"] for stage in (*found["phases"], *controls)]
    found["steps"] = None if each is None else sum(steps)


def _epochs(control: str, recipe: Recipe) -> int:
    return sum(phase.epochs for phase in recipe.phases) if control == "narrow" else training(recipe).epochs


def _macs(control: str, found: dict[str, Any], recipe: Recipe) -> int:
    """Of a training step of a control, for each image: `random` takes the steps of a phase, `narrow` has no teacher."""
    index = training(recipe).index if control == "random" else None
    narrow: int = (1 + BACKWARD) * round(found["dense"]["macs"] * found["budget"]["target"])
    return narrow if index is None else int(found["phases"][index]["macs_per_image"])


def passes(recipe: Recipe, images: Images, compressing: Iterable[bool], gated: bool) -> Iterator[Pass]:
    """All that a run evaluates, the search for thresholds included.

    Args:
        recipe: what runs.
        images: known ones.
        compressing: of each phase, whether it may remove or skip anything.
        gated: gates are left in the end.
    """
    assert images.train is not None
    assert images.evaluation is not None
    test, own = images.evaluation, recipe.budget.batch_size
    calibration, last = min(recipe.evaluate.calibration_images, images.train), len(recipe.phases) - 1
    dials = gated and recipe.budget.metric == "macs"
    yield Pass(0, test, own)  # the dense model's
    is_first = True
    for index, (phase, compresses) in enumerate(zip(recipe.phases, compressing, strict=True)):
        yield Pass(index, test, own)
        if phase.strategies:
            yield Pass(index, calibration, own)
        if compresses and is_first:
            yield Pass(index, test, own)
            is_first = False
    sizes = sorted({*recipe.evaluate.batch_sizes, own})
    again = 1 + (1 + (recipe.budget.scope == "batch") if gated else 0)
    yield from (Pass(last, test, size) for size in sizes)
    yield from (Pass(last, test, own) for _ in range(again))
    if dials:
        turns = 1 + len(recipe.evaluate.dial)
        yield Pass(last, turns * CALIBRATIONS * calibration, own)
        yield Pass(last, len(recipe.evaluate.dial) * test, own)
    for control in recipe.controls:
        yield Pass(last, test * (1 if control == "narrow" else shuffles(recipe.budget.scope)), own)
