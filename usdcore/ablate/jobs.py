"""The runs that a table needs: one for each row and seed, one for all rows that mean the same, and what they share.

All tables of one scale lie in one pool of run folders, named by the recipe's hash, so a run that two tables need is
made once, and a row that changed is another run. Imports no torch.
"""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from pydantic import BaseModel

from usdcore.errors import UsdcoreError
from usdcore.recipe import BudgetConfig, EvaluateConfig, LatencyConfig, recipe_sha256
from usdcore.report.result import read_result

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from usdcore.ablate.loading import Line, Table
    from usdcore.recipe import PhaseConfig, Recipe
    from usdcore.report.result import Result

State = Literal["done", "missed", "begun", "not run"]
"""Of a run: finished; finished with its budget missed; broken off or going on; without any trace."""

_KEY = 10
"""Digits of the hash in a folder's name."""


@dataclass(frozen=True)
class Job:
    """One run. `stem` trains the dense model that it starts from, where other runs start from it too."""

    name: str
    seed: int
    recipe: Recipe
    key: str
    pool: Path
    stem: Job | None = None

    @property
    def folder(self) -> Path:
        """Where it is, or would be: another table may have named it after its own row."""
        tail = f"-s{self.seed}-{self.key[:_KEY]}"
        there = sorted(path for path in self.pool.glob(f"*{tail}") if path.is_dir()) if self.pool.is_dir() else []
        return there[0] if there else self.pool / f"{slug(self.name)}{tail}"

    @property
    def lock(self) -> Path:
        """The file that a process holds while it works on this run."""
        return self.pool / "locks" / f"{self.key[: 2 * _KEY]}.json"

    def result(self) -> Result | None:
        """What it found; None where it is not finished, or wrote what can't be read."""
        try:
            found = read_result(self.folder)
        except UsdcoreError:
            return None
        return found if found.recipe_sha256 == recipe_sha256(self.recipe) else None

    @property
    def state(self) -> State:
        """How far it has come, by what lies in its folder."""
        found = self.result()
        if found is not None:
            return "done" if found.budget.met else "missed"
        checkpoints = self.folder / "checkpoints"
        begun = any((checkpoints / f"{name}.safetensors").is_file() for name in ("last", "previous"))
        return "begun" if begun else "not run"


@dataclass(frozen=True)
class Jobs:
    """All runs of a table, each once, and which of them a row's seed is."""

    all: tuple[Job, ...]
    of_row: dict[tuple[str, int], Job]

    def of(self, name: str, seeds: Sequence[int]) -> list[Job]:
        """A row's runs, by seed; none for a row that is missing or needs none."""
        return [self.of_row[name, seed] for seed in seeds if (name, seed) in self.of_row]


def plan_jobs(table: Table, pool: Path) -> Jobs:
    """The runs of a table, seed by seed, so that a table broken off has whole rows of its first seeds.

    A dense row shows the dense model of whichever run has one like it, finished ones first.
    """
    made: dict[str, Job] = {}
    of_row: dict[tuple[str, int], Job] = {}
    dense: dict[str, list[Job]] = {}
    # A run that several rows show is named after one that shows what it is for.
    lines = sorted(table.lines, key=lambda line: line.row.model != "compressed")
    for seed in table.seeds:
        for line in lines:
            recipe = _recipe(table, line, seed)
            if recipe is not None:
                key = key_of(recipe)
                same = dense.setdefault(_dense_key(recipe), [])
                if line.row.model == "dense" and same:
                    of_row[line.row.name, seed] = next((job for job in same if job.result() is not None), same[0])
                    continue
                of_row[line.row.name, seed] = made.setdefault(key, Job(line.row.name, seed, recipe, key, pool))
                same.append(made[key])
    stems = _stems(made, pool)
    finished = {key: Job(j.name, j.seed, j.recipe, j.key, pool, stems.get(key)) for key, j in made.items()}
    return Jobs(tuple(finished.values()), {place: finished[job.key] for place, job in of_row.items()})


def _recipe(table: Table, line: Line, seed: int) -> Recipe | None:
    if line.recipe is None or line.missing is not None or line.row.structure is not None:
        return None
    note = f"row {line.row.name!r} of the ablation {table.ablation.name} at scale {table.scale_name}"
    note += f"; {line.recipe.note}" if line.recipe.note else ""
    return line.recipe.model_copy(update={"seed": seed, "note": note})


def _stems(made: dict[str, Job], pool: Path) -> dict[str, Job]:
    """By a run's key, the stem that it shares with others (of this table, or of one that was run before)."""
    wanted: dict[str, list[str]] = {}
    stems: dict[str, Job] = {}
    for key, job in made.items():
        recipe = stem_recipe(job.recipe)
        if recipe is not None:
            stem = Job("dense", job.seed, recipe, key_of(recipe), pool)
            stems[key] = stem
            wanted.setdefault(stem.key, []).append(key)
    return {key: stem for key, stem in stems.items() if len(wanted[stem.key]) > 1 or stem.folder.is_dir()}


def _dense_key(recipe: Recipe) -> str:
    """The same for recipes whose dense models are: every run measures its own, so one of them will do."""
    return key_of(
        recipe.model_copy(
            update={
                "name": "dense",
                "phases": plain_phases(recipe),
                "budget": BudgetConfig(macs=1.0, batch_size=recipe.budget.batch_size),
                "evaluate": EvaluateConfig(),
                "latency": LatencyConfig(),
                "controls": (),
            }
        )
    )


def plain_phases(recipe: Recipe) -> tuple[PhaseConfig, ...]:
    """The phases before the first that names a strategy."""
    plain = []
    for phase in recipe.phases:
        if phase.strategies:
            break
        plain.append(phase)
    return tuple(plain)


def stem_recipe(recipe: Recipe) -> Recipe | None:
    """A run of nothing but the dense training that a recipe begins with, which the recipe can go on from.

    None where there is none, where the recipe is nothing else, or where the next phase's optimizer goes on with its
    moments: those end with the run.
    """
    plain = plain_phases(recipe)
    if sum(phase.epochs for phase in plain) == 0 or len(plain) == len(recipe.phases):
        return None
    if recipe.train_for(recipe.phases[len(plain)]).optimizer_state == "carry":
        return None
    size = recipe.budget.batch_size
    return recipe.model_copy(
        update={
            "name": "dense",
            "note": "dense training that several rows of an ablation start from",
            "phases": plain,
            "budget": BudgetConfig(macs=1.0, batch_size=size),
            "evaluate": EvaluateConfig(batch_sizes=(size,)),
            "controls": (),
            "latency": LatencyConfig(batch_sizes=(1,), repeats=1),
        }
    )


def key_of(recipe: Recipe) -> str:
    """Names a run's folder: the recipe's hash, and the files that it starts from, which the hash leaves out."""
    files = sorted(_files(recipe.model_copy(update={"data": None})))
    sha256 = recipe_sha256(recipe)
    return hashlib.sha256("\n".join([sha256, *files]).encode()).hexdigest() if files else sha256


def _files(value: object) -> Iterator[str]:
    """Every path in a recipe's options."""
    if isinstance(value, BaseModel):
        for key in type(value).model_fields:
            yield from _files(getattr(value, key))
    elif isinstance(value, dict):
        for inner in value.values():
            yield from _files(inner)
    elif isinstance(value, list | tuple):
        for inner in value:
            yield from _files(inner)
    elif isinstance(value, Path):
        yield str(value)


def slug(name: str) -> str:
    """A row's name as a part of a folder's."""
    return re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")[:40] or "row"


def shard(jobs: Sequence[Job], number: int, count: int) -> list[Job]:
    """Part `number` (from 1) of `count`: every run is in one part, and parts differ by one run at most."""
    return [job for index, job in enumerate(jobs) if index % count == number - 1]
