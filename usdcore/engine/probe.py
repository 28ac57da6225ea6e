"""A short probe: some real training steps of every phase of a recipe, on made-up images, on the device at hand.

Each phase begins, steps and ends as in a run; only the images mean nothing, and nothing is learned from them. So where
a phase decides what to remove, it is as much of every layer, to the budget's size: not the model that a run will find.
"""

from __future__ import annotations

import os
import time
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch.utils.data import Dataset

from usdcore.artifact import create
from usdcore.costs import cost
from usdcore.engine.controls import narrow_plan
from usdcore.engine.data import DataSets
from usdcore.engine.evaluate import evaluate
from usdcore.engine.fit import Fit, Stage, Surroundings
from usdcore.engine.guard import BadNumbers
from usdcore.engine.log import SilentLog
from usdcore.engine.memory import Memory, Saved, in_use
from usdcore.engine.pace import Clock, Pace, pace
from usdcore.engine.random_control import training
from usdcore.engine.setup import Strategies, autocast, build_model, make_base, make_budget, pick_device
from usdcore.errors import UsdcoreError
from usdcore.plans import Drop, Keep, Plan
from usdcore.projection import Projection
from usdcore.session import Session
from usdcore.surgery import shrink
from usdcore.teachers import no_dense

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from torch import Tensor

    from usdcore.recipe import Recipe
    from usdcore.strategy import Strategy

PLACES = (0.25, 0.75)
"""Of a phase with strategies, where it is looked at: a search may end within it, and its steps then cost less."""
EVALUATING = 0.15
"""The share of a phase's time in which evaluation is measured."""
FREE = 0.5
"""The share of the memory that is free now that a step on the CPU may take: it is someone's machine."""
STEPS = 100
"""Of an epoch, where it is not known: where a step stands in it hardly matters."""
DISTINCT = 64
"""Images that are made up; drawing more takes longer than it tells."""


@dataclass(frozen=True)
class Probe:
    """For about so many seconds in all, by `now` (seconds)."""

    seconds: float
    now: Callable[[], float] = time.perf_counter


@dataclass
class Found:
    """Of one phase or control: the pace of its steps at places of its schedule, and of what it leaves in evaluation."""

    name: str
    paces: list[Pace] = field(default_factory=list)
    memory: Memory | None = None
    evaluating: Pace | None = None
    gated: bool = False
    compresses: bool = False
    #: Why the next phases go on with the whole model.
    note: str = ""

    def step_seconds(self, images: int) -> float | None:
        """Of one step; None where the phase has none."""
        return sum(one.of(images) for one in self.paces) / len(self.paces) if self.paces else None


class Prober:
    """Probes one recipe: `train_images` are the real ones' number, None where it is not known."""

    def __init__(self, recipe: Recipe, probe: Probe, train_images: int | None) -> None:
        if recipe.device == "cuda" and not torch.cuda.is_available():
            recipe = recipe.model_copy(update={"device": "cpu"})
        self.recipe, self.probe = recipe, probe
        self.device = pick_device(recipe)
        self.clock = Clock(self.device, probe.now)
        size = recipe.data.batch_size
        self.rows = size if train_images is None else min(size, train_images)
        self.base = make_base(recipe.model, recipe.data.input_size, recipe.data.channels)
        images = _Blank(train_images or STEPS * size)
        data = DataSets(images, images, images, recipe.model.num_classes, recipe.data.channels, "made up", "")
        amp = autocast(self.device, recipe.train.amp)
        self.around = Surroundings(data, recipe.data, recipe.seed, self.device, SilentLog(Path(os.devnull)), amp)
        self.each = probe.seconds / (len(recipe.phases) + ("narrow" in recipe.controls))

    def phases(self) -> Iterator[Found]:
        """Each phase, then each control. Errors: numbers that are not finite, a step that does not fit into memory."""
        torch.manual_seed(self.recipe.seed)
        model = build_model(self.base, self.recipe.model.model_copy(update={"pretrained": False}))
        session, strategies = self._session(model, Plan(base=self.base)), Strategies()
        session.known, session.load_dense = strategies.made, no_dense
        first, done = 0, list[Found]()
        for phase in self.recipe.phases:
            named = strategies.of(phase.strategies)
            compresses = any(strategy.compresses for strategy in named)
            if compresses:
                session.load_dense = partial(create, self.base)  # from here on there is a dense model
            session.begin_phase(named)
            stage = Stage(phase.name, phase.epochs, self.recipe.train_for(phase), first)
            found = self._trained(session, stage, named)
            found.compresses = compresses
            if named:
                found.note = self._ended(session, found)
            self._evaluated(session, found)
            first += phase.epochs
            done.append(found)
            yield found
        for name in self.recipe.controls:
            yield self._narrow(session, first) if name == "narrow" else self._random(done)

    def _session(self, model: Any, plan: Plan) -> Session:
        example = torch.zeros(1, *self.base.input_shape)
        session = Session(model.to(self.device), example, make_budget(self.recipe.budget), plan)
        session.is_dry, session.amp, session.settle_time = True, self.around.amp, _evenly
        return session

    def _random(self, phases: list[Found]) -> Found:
        """The compressed model with random gates: its steps are those of the phase that it repeats."""
        index = training(self.recipe).index
        return Found("control random") if index is None else replace(phases[index], name="control random", note="")

    def _narrow(self, session: Session, epochs: int) -> Found:
        """The narrow model, of the budget's MACs where it is one of MACs and of the last phase's model otherwise."""
        budget = self.recipe.budget
        macs = budget.target * session.dense.macs if budget.metric == "macs" else float(cost(session.units).macs)
        dense = create(self.base)
        whole = self._session(dense, Plan(base=self.base))
        plan = Plan(base=self.base).then(narrow_plan(whole.units, macs).records)
        small = self._session(shrink(dense, plan), plan)
        name = "control narrow"
        found = self._trained(small, Stage(name, epochs, self.recipe.train_for(self.recipe.phases[0]), epochs), [])
        self._evaluated(small, found)
        return found

    def _trained(self, session: Session, stage: Stage, named: list[Strategy]) -> Found:
        found = Found(stage.name, gated=session.gating is not None)
        if stage.epochs == 0:
            return found
        rehearsal = Rehearsal(session, stage, self.around, named)
        places = PLACES if named else PLACES[:1]
        try:
            for place in places:
                rehearsal.go_to(place)
                seconds = (1 - EVALUATING) * self.each / len(places)
                found.paces.append(pace(rehearsal.take, self.rows, seconds, self.clock, rehearsal.fits))
        except BadNumbers as error:
            msg = f"the probe of phase {stage.name} came to bad numbers ({error}); use --probe 0 for a plan without it"
            raise UsdcoreError(msg) from None
        except torch.OutOfMemoryError as error:
            msg = f"two images of phase {stage.name} do not fit into the memory of {self.device}; use --probe 0"
            raise UsdcoreError(msg) from error
        found.memory = rehearsal.memory(self.rows)
        return found

    def _ended(self, session: Session, found: Found) -> str:
        """Decide and shrink as at a phase's end. Returns why that was not possible, or nothing."""
        size = min(self.recipe.budget.batch_size, max(found.paces[0].sizes) if found.paces else 2)
        images = self._images(size)
        try:
            session.end_phase(lambda: [images])
        except UsdcoreError as error:
            return f"after {found.name} the probe went on with the whole model, so later steps look dearer: {error}"
        found.gated = session.gating is not None
        return ""

    def _evaluated(self, session: Session, found: Found) -> None:
        largest = max(self.recipe.budget.batch_size, *self.recipe.evaluate.batch_sizes)
        images, labels = self._images(largest), torch.zeros(largest, dtype=torch.long)

        def call(size: int) -> None:
            evaluate(session.model, session.units, [(images[:size], labels[:size])], self.around.amp)

        # In evaluation no more than the largest layers is held at once: far less than a step of as many images.
        limit = max((max(one.sizes) for one in found.paces), default=largest)
        found.evaluating = pace(call, largest, EVALUATING * self.each, self.clock, lambda size: size <= 4 * limit)

    def _images(self, number: int) -> Tensor:
        return _made_up(number, self.base.input_shape, self.recipe.seed).to(self.device)


def _evenly(session: Session, at: Callable[[float], Projection]) -> Projection:
    """In place of what untrained strategies would remove, which may be all of a few layers: as much of every layer, to
    what may be left without gates (the budget, or its bound for that).
    """
    share = session.budget.static or session.budget.target
    macs = share * session.dense.macs
    try:
        plan = narrow_plan(session.units, macs)
    except UsdcoreError:  # there is too little that all layers have
        return at(session.budget.target)
    records = [record for record in plan.records if isinstance(record, Keep)]
    return Projection(list[Keep | Drop](records), 0, macs, macs)


class Rehearsal(Fit):
    """Steps of a stage at any place of its schedule, of any number of images."""

    def __init__(self, session: Session, stage: Stage, around: Surroundings, strategies: list[Strategy]) -> None:
        super().__init__(session, stage, around, strategies)
        self.forward = self.model  # compiling takes longer than a probe
        self.model.train()
        self._size = 0
        self._saved: dict[int, int] = {}  # bytes kept for the backward, by images
        self._peaks: dict[int, int] = {}  # of the device's own allocator
        self._images, self._target = self._made(2)

    def go_to(self, progress: float) -> None:
        """Stand at a share of the stage, between 0 and 1."""
        self.state.epoch, self.state.step = divmod(int(progress * self.steps * self.stage.epochs), self.steps)

    def take(self, size: int) -> None:
        """One step of so many images. The first of a size is looked at."""
        if size in self._saved:
            self._step(*self._batch(size))
            return
        device = self.around.device
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(device)
        with Saved(self.model) as saved:
            self._step(*self._batch(size))
        self._saved[size] = saved.bytes
        if device.type == "cuda":
            self._peaks[size] = torch.cuda.max_memory_allocated(device)

    def fits(self, size: int) -> bool:
        """Whether a step of so many images may be tried."""
        device = self.around.device
        if device.type == "cuda":
            return self._peak(size) <= torch.cuda.mem_get_info(device)[0] + torch.cuda.memory_reserved(device)
        free = os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
        return _along(self._saved, size) <= FREE * free

    def memory(self, rows: int) -> Memory:
        """Of a step of `rows` images."""
        if len(self._saved) == 1 and rows not in self._saved:
            # What does not grow with the images (weights that autocast has cast) only shows in a second size.
            with Saved(self.model) as saved:
                self._forward(*self._batch(2 * max(self._saved)))
            self._saved[self._size] = saved.bytes
        kept, found = _along(self._saved, rows), in_use(self)
        largest = max(self._saved)
        seen = f"a step of {largest} images" + (f", scaled to {rows}" if rows != largest else "")
        if self._peaks:
            measured = f"the peak is the device's own count in {seen}"
            return replace(found, activations=kept, peak=self._peak(rows), source=measured)
        return found.with_activations(kept, f"the sum of the parts; activations as autograd kept them in {seen}")

    def _batch(self, size: int) -> tuple[Tensor, Tensor]:
        if size > len(self._images):
            self._images, self._target = self._made(size)
        self._size = size
        return self._images[:size], self._target[:size]

    def _peak(self, size: int) -> int:
        """Of the device's own counts, that of the largest step, and what more images keep for the backward."""
        largest = max(self._peaks)
        return self._peaks[largest] + _along(self._saved, size) - self._saved[largest]

    def _ids(self) -> Tensor | None:
        ids = super()._ids()
        return None if ids is None else ids[: self._size]

    def _made(self, number: int) -> tuple[Tensor, Tensor]:
        shape, around = tuple(self.session.example_inputs.shape[1:]), self.around
        images = _made_up(number, shape, around.seed)
        target = torch.arange(number) % around.data.num_classes
        return images.to(around.device), target.to(around.device)


class _Blank(Dataset[Any]):
    """Nothing but a number of images."""

    def __init__(self, number: int) -> None:
        self.number = number

    def __len__(self) -> int:
        return self.number


def _along(at: dict[int, int], size: int) -> int:
    """On the line through the two largest sizes that were looked at; through one and the origin."""
    large, *smaller = sorted(at, reverse=True)
    if size == large:
        return at[large]
    if not smaller:
        return at[large] * size // large
    small = smaller[0]
    return at[large] + (at[large] - at[small]) * (size - large) // (large - small)


def _made_up(number: int, shape: tuple[int, ...], seed: int) -> Tensor:
    """Noise; of many images, `DISTINCT` ones over and over."""
    distinct = torch.randn(min(number, DISTINCT), *shape, generator=torch.Generator().manual_seed(seed))
    return distinct[torch.arange(number) % len(distinct)]
