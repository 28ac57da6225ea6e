"""Attacks on what lies in a run's folder: checkpoints, the recipe, results, the report."""

from __future__ import annotations

import atexit
import functools
import json
import os
import shutil
import tempfile
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch

import usdcore
from usdcore.cli import main
from usdcore.engine import checkpoint
from usdcore.engine.checkpoint import Checkpoints, read_state, write_state
from usdcore.engine.log import RunLog
from usdcore.errors import BudgetMissed
from usdcore.report.page import write_report
from usdcore.tensorfile import write_tensors

from . import made
from .table import AS_TEXT, OLDER, UNTOUCHED, Table

checkpoints = Table("A run's checkpoints")
folder = Table("A run's folder")
result = Table("A run's `result.json`, given to `usdcore report`")

RECIPE = """
name: tiny
model: {name: vit_tiny_patch16_224, num_classes: 10, kwargs: {patch_size: 4, embed_dim: 16, depth: 2, num_heads: 2}}
data: {source: digits, input_size: 8, batch_size: 256}
budget: {macs: 0.7, batch_size: 128}
seed: 0
threads: 1
train: {lr: 2.0e-3}
phases:
  - {name: search, epochs: 1, strategies: [{use: usdc-static, lr: 0.1}]}
evaluate: {batch_sizes: [128], calibration_images: 128}
latency: {batch_sizes: [1], repeats: 1}
checkpoint: {seconds: 0}
"""


@functools.cache
def finished() -> Path:
    """The folder of a small run, made once."""
    home = Path(tempfile.mkdtemp())
    atexit.register(shutil.rmtree, home, ignore_errors=True)
    (home / "tiny.yaml").write_text(RECIPE)
    with suppress(BudgetMissed):
        usdcore.run(home / "tiny.yaml", home / "run")
    return home


def run_in(place: Path) -> Path:
    """A copy of the finished run."""
    shutil.copytree(finished() / "run", place / "run")
    return place / "run"


def go_on(run: Path) -> object:
    """The same command again, on a run that is not finished."""
    (run / "result.json").unlink()
    return usdcore.run(finished() / "tiny.yaml", run)


def two(place: Path) -> Checkpoints:
    """Checkpoints of two moments."""
    found = Checkpoints(place / "checkpoints")
    for moment in (1, 2):
        found.write({"moment": moment, "weights": torch.full((1000,), float(moment))})
    return Checkpoints(place / "checkpoints")


def _older(change: Callable[[Path], object]) -> Callable[[Path], None]:
    def act(place: Path) -> None:
        found = two(place)
        change(found.last)
        state, path, _ = found.read()
        assert state["moment"] == 1
        assert torch.equal(state["weights"], torch.ones(1000))
        assert path == found.previous
        found.write({"moment": 3})
        assert read_state(found.previous)["moment"] == 1  # the damaged one did not take its place
        assert Checkpoints(found.folder).read()[0]["moment"] == 3

    return act


def _bytes(change: Callable[[bytes], bytes]) -> Callable[[Path], object]:
    return lambda path: path.write_bytes(change(path.read_bytes()))


checkpoints.add("a bit flipped in the newest", _older(_bytes(lambda b: made.flipped(b, 8 * len(b) - 99))), OLDER)
checkpoints.add("a bit flipped in its numbers", _older(_bytes(lambda b: b.replace(b"moment", b"momenu"))), OLDER)
checkpoints.add("the newest cut off", _older(_bytes(lambda b: b[:-1000])), OLDER)
checkpoints.add("the newest empty", _older(_bytes(lambda b: b"")), OLDER)
checkpoints.add("the newest gone", _older(Path.unlink), OLDER)
checkpoints.add("the newest a pickle", _older(lambda path: torch.save({"moment": 9}, path)), OLDER)


@checkpoints("both damaged")
def _both(place: Path) -> None:
    found = two(place)
    for path in (found.last, found.previous):
        os.truncate(path, 500)
    found.read()


@checkpoints("an older format, without checksums")
def _old(place: Path) -> None:
    found = two(place)
    found.last.write_bytes(made.raw({"__metadata__": {"usdcore.state": "{}"}}))
    found.read()


@checkpoints("a model under its name")
def _model(place: Path) -> None:
    found = two(place)
    found.last.write_bytes(made.model_bytes())
    found.read()


def _state(text: str) -> Callable[[Path], None]:
    def act(place: Path) -> None:
        (place / "checkpoints").mkdir()
        write_tensors(place / "checkpoints" / "last.safetensors", checkpoint.KIND, text, {"t0": torch.ones(1)})
        Checkpoints(place / "checkpoints").read()

    return act


checkpoints.add("no state in it, under right checksums", _state("[1]"))
checkpoints.add("a tensor that it does not have", _state('{"__map__": [["a", {"__tensor__": "t9"}]]}'))
checkpoints.add("a tag that there is not", _state('{"__map__": [["a", {"__class__": "os.system"}]]}'))
checkpoints.add("keys that are lists", _state('{"__map__": [[["a"], 1]]}'))
checkpoints.add("nested 100,000 deep", _state('{"__map__": [["a", ' + "[" * 10**5 + "]" * 10**5 + "]]}"))


def _restored(change: Callable[[dict[str, Any]], object]) -> Callable[[Path], object]:
    """Go on from a state that was changed, under right checksums."""

    def act(place: Path) -> object:
        run = run_in(place)
        last = run / "checkpoints" / "last.safetensors"
        state = read_state(last)
        change(state)
        write_state(state, last)
        return go_on(run)

    return act


def _plan(change: Callable[[dict[str, Any]], object]) -> Callable[[dict[str, Any]], object]:
    def edit(state: dict[str, Any]) -> None:
        stated = json.loads(state["plan"])
        change(stated)
        state["plan"] = json.dumps(stated)

    return edit


checkpoints.add("a state of another recipe", _restored(lambda s: s.update(recipe_sha256="0" * 64)))
checkpoints.add("a state of another format", _restored(lambda s: s.update(format=2)))
checkpoints.add("a state with a part missing", _restored(lambda s: s.pop("model")))
checkpoints.add("a phase that is no number", _restored(lambda s: s.update(stage="last")))
checkpoints.add("weights of other shapes", _restored(lambda s: s["model"].update({"norm.bias": torch.ones(3)})))
checkpoints.add("a plan that is none", _restored(lambda s: s.update(plan="{")))
checkpoints.add(
    "a plan with an index out of range",
    _restored(
        _plan(lambda p: p.update(records=[{"record": "keep", "group": "blocks.0.mlp:hidden", "indices": [999]}]))
    ),
)


@folder("a name with a path in it, in the recipe")
def _recipe_name(place: Path) -> None:
    run = run_in(place)
    (run / "recipe.yaml").write_text((run / "recipe.yaml").read_text().replace("name: tiny", "name: ../../tiny"))
    go_on(run)


@folder("a recipe in it that this version can't read, of a run that is not finished")
def _older_recipe(place: Path) -> None:
    run = run_in(place)
    (run / "recipe.yaml").write_text((run / "recipe.yaml").read_text().replace("weight_decay:", "decay:"))
    go_on(run)


@folder("a bit flipped in its dense model, of which there is one copy")
def _damaged_dense(place: Path) -> None:
    run = run_in(place)
    dense = run / "checkpoints" / "dense.safetensors"
    dense.write_bytes(made.flipped(dense.read_bytes(), 8 * dense.stat().st_size - 99))
    go_on(run)


@folder("its dense model gone")
def _no_dense(place: Path) -> None:
    run = run_in(place)
    (run / "checkpoints" / "dense.safetensors").unlink()
    go_on(run)


@folder("another model's file in it, given to `usdcore eval`")
def _other_model(place: Path) -> None:
    run = run_in(place)
    (run / "model.safetensors").write_bytes(made.model_bytes())
    from usdcore.engine.assess import Assessor
    from usdcore.engine.setup import load_data
    from usdcore.recipe import load_recipe

    recipe = load_recipe(run / "recipe.yaml")
    Assessor.of_file(run / "model.safetensors", recipe, load_data(recipe), torch.device("cpu"))


@folder("a link to another folder in the place of `figures`")
def _figures(place: Path) -> None:
    run = run_in(place)
    shutil.rmtree(run / "figures", ignore_errors=True)
    (place / "elsewhere").mkdir()
    (run / "figures").symlink_to(place / "elsewhere")
    try:
        write_report(run)
    finally:
        assert not list((place / "elsewhere").iterdir())


@folder("a link to another file in the place of `report.html`", UNTOUCHED)
def _report(place: Path) -> None:
    run = run_in(place)
    (place / "other").write_text("mine")
    (run / "report.html").unlink()
    (run / "report.html").symlink_to(place / "other")
    write_report(run)
    assert (place / "other").read_text() == "mine"
    assert not (run / "report.html").is_symlink()


@folder("a link to another file in the place of `metrics.jsonl`")
def _metrics(place: Path) -> None:
    (place / "other").write_text("mine")
    (place / "metrics.jsonl").symlink_to(place / "other")
    try:
        RunLog(place / "metrics.jsonl").write(epoch=0)
    finally:
        assert (place / "other").read_text() == "mine"


def _result(change: Callable[[dict[str, Any]], object]) -> Callable[[Path], object]:
    def act(place: Path) -> object:
        run = run_in(place)
        stated = json.loads((run / "result.json").read_text())
        change(stated)
        (run / "result.json").write_text(json.dumps(stated))
        return write_report(run)

    return act


def _result_text(text: str) -> Callable[[Path], object]:
    def act(place: Path) -> object:
        (place / "result.json").write_text(text)
        return write_report(place)

    return act


result.add("not JSON", _result_text("{"))
result.add("a key twice", _result_text('{"usdcore": "1", "usdcore": "2"}'))
result.add("nested 100,000 deep", _result_text("[" * 10**5 + "]" * 10**5))
result.add("NaN for a number", _result(lambda r: r["dense"].update(top1=float("nan"))))
result.add("10^300 for a number", _result(lambda r: r["dense"].update(macs=1e300)))
result.add("a layer of no heads at all", _result(lambda r: r["structure"][0]["attention"].update(heads_dense=0)))
result.add("a figure of 1000 layers", _result(lambda r: r.update(structure=r["structure"] * 500)))
result.add("a name of a million letters", _result(lambda r: r.update(model="m" * 10**6)))
result.add("a format that is newer than usdcore", _result(lambda r: r.update(format=2)))


@result("5 MB of it")
def _large(place: Path) -> None:
    (place / "result.json").write_bytes(b" " * 5 * 2**20)
    write_report(place)


@result("a pipe under its name, on which reading would wait for ever")
def _pipe(place: Path) -> None:
    os.mkfifo(place / "result.json")
    write_report(place)


SCRIPT = "</title><script>alert(1)</script><img src=x onerror=alert(2)>"


@result("a script in every name", AS_TEXT)
def _script(place: Path) -> None:
    def everywhere(stated: dict[str, Any]) -> None:
        stated.update(model=SCRIPT, recipe=SCRIPT, note=SCRIPT)
        stated["budget"].update(met=False, why=SCRIPT)
        stated["phases"][0].update(name=SCRIPT, strategies=[SCRIPT])
        stated["structure"][0].update(block=SCRIPT)
        stated["provenance"]["data"].update(description=SCRIPT)
        stated["provenance"]["versions"][SCRIPT] = SCRIPT

    _result(everywhere)(place)
    page = (place / "run" / "report.html").read_text()
    assert "<script" not in page
    assert "<img" not in page
    assert "<script" not in (place / "run" / "report.md").read_text()


@result("codes in a name that a terminal would obey", AS_TEXT)
def _codes(place: Path) -> None:
    _result(lambda r: r.update(model="\x1b[2J\x1b]0;gone\x07"))(place)
    for name in ("report.html", "report.md"):
        assert "\x1b" not in (place / "run" / name).read_text()
    assert main(["report", str(place / "run"), "--json"]) == 0


TABLES = (checkpoints, folder, result)
