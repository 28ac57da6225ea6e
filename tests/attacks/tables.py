"""Attacks on tables of runs: the ablation's file, the folder of its runs, locks, and names of packages to be made."""

from __future__ import annotations

import functools
import os
from collections.abc import Callable
from contextlib import chdir
from pathlib import Path
from unittest import mock

from usdcore.ablate.handing import hand_on
from usdcore.ablate.jobs import Job, plan_jobs
from usdcore.ablate.loading import Table as Ablations
from usdcore.ablate.loading import at_scale, read_ablation
from usdcore.ablate.locks import holder, locked
from usdcore.cli.pages import write_pages
from usdcore.engine.checkpoint import Checkpoints
from usdcore.recipe import Recipe, load_recipe
from usdcore.scaffold import write_package

from .disk import read_only
from .table import AS_TEXT, UNTOUCHED, Table

file = Table("An ablation's file")
pool = Table("The folder of an ablation's runs")
packages = Table("The name of a package that `usdcore plugins new` is to make, and the folder of its pages")

RERUN = "taken for a run that is not finished"
RECIPE = """\
name: small
model: {name: vit_tiny_patch16_224, num_classes: 10, kwargs: {patch_size: 4, embed_dim: 32, depth: 2, num_heads: 2}}
data: {source: digits, input_size: 8, batch_size: 128}
budget: {macs: 0.7, batch_size: 32}
seed: 7
train: {lr: 2.0e-3}
phases:
  - {name: dense, epochs: 2}
  - {name: search, epochs: 2, strategies: [{use: prune, importance: l2}]}
"""
ABLATION = """\
name: small-table
title: A small table
paper: {cite: "Nobody, Table 1", data: ImageNet-1K}
report: [macs, top1]
seeds: [0]
scales: {own: {base: base.yaml, data: digits}}
rows:
  - {name: magnitude}
  - {name: Taylor, set: {phases.search.strategies.prune.importance: taylor}}
"""


def _table(change: Callable[[str], str]) -> Callable[[Path], object]:
    def act(place: Path) -> object:
        (place / "base.yaml").write_text(RECIPE)
        (place / "table.yaml").write_text(change(ABLATION))
        return at_scale(read_ablation(place / "table.yaml"))

    return act


def _with(old: str, new: str) -> Callable[[Path], object]:
    return _table(lambda text: text.replace(old, new))


BOMB = "a0: &a0 [x, x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 10)}]\n" for i in range(1, 12)
)
file.add("a tag that would call Python", _with("title: A small table", "title: !!python/object/apply:os.system [ls]"))
file.add("a billion values by references", _table(lambda text: BOMB + text))
file.add("nested 100,000 deep", _table(lambda text: text + "note: " + "[" * 10**5))
file.add("100 MB", _table(lambda text: text + "#" * 10**8))
file.add("20,000 rows", _table(lambda text: text + "".join(f"  - {{name: r{i}}}\n" for i in range(20_000))))
file.add("a name with a path in it", _with("name: small-table", "name: ../../small"))
file.add("a scale with a path in its name", _with("{own:", "{../own:"))
file.add("a base of 300 letters", _with("base.yaml", "b" * 300))
file.add("a base with a null byte in its name", _with("base: base.yaml", r'base: "base\x00.yaml"'))
file.add("a device for a base", _with("base.yaml", "/dev/zero"))
file.add("a row that changes the recipe's name to a path", _with("{name: magnitude}", "{name: m, set: {name: ../x}}"))
file.add("a row with a plugin's path for a strategy", _with("importance: taylor", "use: 'os:system'"))
file.add("a path of 500 keys", _with("phases.search.strategies.prune.importance", "a." * 240 + "b"))


@file("codes in a row's name that a terminal would obey", AS_TEXT)
def _codes(place: Path) -> None:
    table = _with("name: magnitude", r'name: "\e[2J\e]0;gone\a"')(place)
    assert isinstance(table, Ablations)
    assert table.lines[0].row.name.isprintable()


@file("a pipe for a base, on which reading would wait for ever")
def _pipe(place: Path) -> None:
    os.mkfifo(place / "p.yaml")
    _with("base.yaml", "p.yaml")(place)


@functools.cache
def _planned(place: Path) -> tuple[Job, Job]:
    """The first row's run, and the dense model's."""
    (place / "base.yaml").write_text(RECIPE)
    (place / "table.yaml").write_text(ABLATION)
    jobs = plan_jobs(at_scale(read_ablation(place / "table.yaml")), place / "pool")
    job = jobs.of_row["magnitude", 0]
    assert job.stem is not None
    return job, job.stem


def _result(text: str) -> Callable[[Path], None]:
    def act(place: Path) -> None:
        job, _ = _planned(place)
        job.folder.mkdir(parents=True)
        (job.folder / "result.json").write_text(text)
        assert job.state == "not run"

    return act


pool.add("a result that is no JSON", _result("{"), RERUN)
pool.add("a result with a key twice", _result('{"usdcore": "1", "usdcore": "2"}'), RERUN)
pool.add("a result nested 100,000 deep", _result("[" * 10**5), RERUN)
pool.add("a result of 5 MB", _result(" " * 5 * 2**20), RERUN)
pool.add("a result of NaN", _result('{"dense": NaN}'), RERUN)


@pool("a pipe in the place of a result", RERUN)
def _result_pipe(place: Path) -> None:
    job, _ = _planned(place)
    job.folder.mkdir(parents=True)
    os.mkfifo(job.folder / "result.json")
    assert job.state == "not run"


def _lock(make: Callable[[Path], object]) -> Callable[[Path], None]:
    def act(place: Path) -> None:
        job, _ = _planned(place)
        job.lock.parent.mkdir(parents=True)
        make(job.lock)
        with locked(job.lock):
            pass

    return act


@pool("a link to another file in the place of a lock")
def _linked_lock(place: Path) -> None:
    (place / "other").write_text("mine")
    try:
        _lock(lambda lock: lock.symlink_to(place / "other"))(place)
    finally:
        assert (place / "other").read_text() == "mine"


pool.add("a folder in the place of a lock", _lock(Path.mkdir))


@pool("a folder that can't be written, for a lock")
def _no_room_for_locks(place: Path) -> None:
    job, _ = _planned(place)
    job.pool.mkdir()
    with read_only(job.pool), locked(job.lock):
        pass


@pool("a lock that names a process of a million digits", "whoever holds it is another process")
def _strange_lock(place: Path) -> None:
    job, _ = _planned(place)
    for text in ('{"host": "\\u001b[2J", "process": ' + "9" * 500 + "}", '{"host": [], "process": "x"}', "{", ""):
        with locked(job.lock):
            job.lock.write_text(text[:900])
            with locked(job.lock) as other:
                assert other is not None
                assert other.isprintable()
    assert holder(job.lock) is None


def _handed_on(change: Callable[[Path, Recipe], object]) -> Callable[[Path], None]:
    """A row starts from a dense training that was changed."""

    def act(place: Path) -> None:
        (place / "base.yaml").write_text(RECIPE)
        recipe, stem = load_recipe(place / "base.yaml"), place / "stem"
        phases = [{"name": "dense", "seconds": 1.0}]
        state = {"fit": None, "model": {}, "facts": {"phases": phases, "warnings": []}}
        Checkpoints(stem / "checkpoints").write(state)
        (stem / "metrics.jsonl").write_text('{"epoch": 0}\n{"event": "phase"}\n')
        change(stem, recipe)
        hand_on(stem, place / "row", recipe)

    return act


def _metrics(text: str) -> Callable[[Path, Recipe], object]:
    return lambda stem, _: (stem / "metrics.jsonl").write_text(text)


def _state(state: dict[str, object]) -> Callable[[Path, Recipe], object]:
    return lambda stem, _: Checkpoints(stem / "checkpoints").write(state)


pool.add("metrics of a dense training that are no JSON", _handed_on(_metrics("{\n")))
pool.add("metrics that are no mappings", _handed_on(_metrics("[]\n3\n")))
pool.add("metrics that end too soon", _handed_on(_metrics('{"epoch": 0}\n')))
pool.add("a dense training's state with its facts missing", _handed_on(_state({"fit": None, "model": {}})))
pool.add(
    "a dense training's state whose phases are a number",
    _handed_on(_state({"fit": None, "model": {}, "facts": {"phases": 3, "warnings": []}})),
)


def _named(name: str) -> Callable[[Path], object]:
    def act(place: Path) -> object:
        try:
            return write_package(name, place / "x.yaml")  # a folder of this name
        finally:
            assert not list(place.iterdir())

    return act


NAMES = (
    "../../x",
    "/tmp/x",
    "..",
    "",
    ".",
    "a/b",
    "a\\b",
    "a\0b",
    "os",
    "a" * 5000,
    "ünder",
    "x;rm",
    "{{name}}",
    "\x1b[2J",
)
for name in NAMES:
    packages.add(f"the name `{name.encode('unicode_escape').decode()[:20]}`", _named(name))


@packages("a link that leads nowhere in the package's place")
def _dangling(place: Path) -> None:
    (place / "mine").symlink_to(place / "nowhere")
    try:
        with chdir(place):
            write_package("mine", Path())
    finally:
        assert not (place / "nowhere").exists()


@packages("a package of that name that appears meanwhile")
def _meanwhile(place: Path) -> None:
    rename = Path.rename

    def late(self: Path, target: Path) -> Path:
        target.mkdir()
        (target / "theirs").write_text("kept")
        return rename(self, target)

    try:
        with mock.patch.object(Path, "rename", late):
            write_package("mine", place)
    finally:
        assert [path.name for path in place.rglob("*")] == ["mine", "theirs"]


@packages("a link to another file in the place of a page", UNTOUCHED)
def _page(place: Path) -> None:
    (place / "other").write_text("mine")
    (place / "pages").mkdir()
    (place / "pages" / "uvc.md").symlink_to(place / "other")
    write_pages(place / "pages", "usdcore")
    assert (place / "other").read_text() == "mine"


TABLES = (file, pool, packages)
