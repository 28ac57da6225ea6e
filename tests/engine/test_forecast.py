"""What a run will take: steps and MACs by count, memory, and time from a probe with a clock of our own."""

from __future__ import annotations

import itertools
from pathlib import Path

import pytest
import torch

from usdcore.engine.amounts import CALIBRATIONS, Images, count_images, passes
from usdcore.engine.forecast import forecast
from usdcore.engine.probe import Probe
from usdcore.errors import UsdcoreError
from usdcore.recipe import load_recipe, read_recipe

RECIPES = Path(__file__).parents[2] / "recipes"
TEXT = """\
name: small
model: {name: vit_tiny_patch16_224, num_classes: 10, kwargs: {patch_size: 4, embed_dim: 32, depth: 2, num_heads: 2}}
data: {source: digits, input_size: 8, batch_size: 64}
budget: {macs: 0.7, batch_size: 32}
seed: 0
device: cpu
train: {lr: 2.0e-3}
phases:
  - {name: dense, epochs: 3}
  - {name: search, epochs: 2, strategies: [usdc-static, {use: usdc-dynamic, gate_network: G5}]}
  - {name: finetune, epochs: 4, strategies: [usdc-dynamic]}
evaluate: {batch_sizes: [1, 32], calibration_images: 256}
"""


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    (tmp_path / "x.yaml").write_text(TEXT)
    return tmp_path / "x.yaml"


def ticking(seconds: float = 240) -> Probe:
    """Every call that is timed takes one second, and there is time for whole steps."""
    return Probe(seconds, itertools.count().__next__)


def test_steps_and_macs_are_counted(recipe: Path) -> None:
    found = forecast(load_recipe(recipe, ["controls=[narrow]"]))
    dense = found["dense"]["macs"]
    assert found["images"] == {"train": 1437, "evaluation": 360, "source": "known to the data source"}
    assert [phase["steps"] for phase in found["phases"]] == [66, 44, 88]  # 1437 // 64 = 22 an epoch
    assert [control["steps"] for control in found["controls"]] == [198]
    assert found["steps"] == 396
    assert found["phases"][0]["macs_per_step"] == 64 * 3 * dense
    assert found["phases"][2]["macs_per_step"] == pytest.approx(64 * 3 * 0.7 * dense, rel=0.02)
    assert found["budget"]["cost"] == round(0.7 * dense)
    assert found["estimate"] is None
    memory, weights = found["memory"], 4 * found["dense"]["params"]
    assert memory["weights"] == memory["gradients"] == pytest.approx(weights, rel=0.05)  # with gates
    assert memory["optimizer"] == pytest.approx(2 * memory["weights"], rel=1e-3)
    assert memory["activations"] is memory["peak"] is None


def test_hours_are_the_time_of_a_step_by_their_number(recipe: Path) -> None:
    found = forecast(load_recipe(recipe, ["controls=[narrow]"]), probe=ticking())
    estimate = found["estimate"]
    assert estimate["is_estimate"]
    assert [(s["name"], s["step_seconds"], s["seconds"]) for s in estimate["stages"]] == [
        ("dense", 1, 66),
        ("search", 1, 44),
        ("finetune", 1, 88),
        ("control narrow", 1, 198),
    ]
    assert not any(stage["is_scaled"] for stage in estimate["stages"])
    assert estimate["seconds"] == pytest.approx(396 + estimate["evaluation"]["seconds"])
    assert estimate["hours"] == pytest.approx(estimate["seconds"] / 3600)
    on = estimate["measured_on"]
    assert (on["type"], on["dtype"], on["devices"]) == ("cpu", "float32", 1)
    assert on["threads"] == torch.get_num_threads()


def test_the_peak_is_the_sum_of_its_parts(recipe: Path) -> None:
    memory = forecast(load_recipe(recipe), probe=ticking())["memory"]
    parts = ("weights", "gradients", "optimizer", "average", "teachers", "activations")
    assert memory["peak"] == sum(memory[part] for part in parts)
    assert memory["average"] == memory["teachers"] == 0
    assert memory["activations"] > 64 * 8 * 8 * 4


@pytest.mark.parametrize("size", [32, 64])
def test_what_is_kept_for_the_backward_grows_with_the_images(recipe: Path, size: int) -> None:
    plain = ["phases=[{name: dense, epochs: 1}, {name: search, epochs: 0, strategies: [prune]}]"]
    whole = forecast(load_recipe(recipe, plain), probe=ticking())["memory"]["activations"]
    part = forecast(load_recipe(recipe, [*plain, f"data.batch_size={size}"]), probe=ticking())["memory"]["activations"]
    assert part == pytest.approx(whole * size / 64, rel=0.02)


def test_averages_and_teachers_take_memory(recipe: Path) -> None:
    extra = ["train.ema=0.99", "phases.1.strategies=[usdc-static, distill]", "phases.2.strategies=[distill]"]
    found = forecast(load_recipe(recipe, extra), probe=ticking())
    assert found["memory"]["average"] >= found["memory"]["weights"]
    assert found["memory"]["teachers"] == 4 * found["dense"]["params"]


def test_a_phase_of_no_epochs_takes_no_steps(recipe: Path) -> None:
    phases = "phases=[{name: merge, epochs: 0, strategies: [prune]}]"
    found = forecast(load_recipe(recipe, [phases]), probe=ticking())
    (stage,) = found["estimate"]["stages"]
    assert (found["steps"], stage["steps"], stage["seconds"], stage["step_seconds"]) == (0, 0, 0, None)
    assert found["estimate"]["seconds"] == found["estimate"]["evaluation"]["seconds"] > 0


def test_without_time_a_step_is_scaled(recipe: Path) -> None:
    found = forecast(load_recipe(recipe), probe=Probe(1e-9))
    for stage in found["estimate"]["stages"]:
        assert (stage["is_scaled"], stage["probed_images"]) == (True, [2])


def test_a_search_that_has_not_learned_anything_may_miss_its_promise(recipe: Path) -> None:
    phases = "phases=[{name: search, epochs: 2, strategies: [uvc]}, {name: finetune, epochs: 1}]"
    found = forecast(load_recipe(recipe, [phases]), probe=ticking())
    assert found["estimate"]["hours"] > 0
    assert not any("whole model" in note for note in found["notes"])


def test_where_a_phase_can_not_end_the_whole_model_goes_on(recipe: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        msg = "nothing to decide yet"
        raise UsdcoreError(msg)

    monkeypatch.setattr("usdcore.session.Session.end_phase", refuse)
    found = forecast(load_recipe(recipe), probe=Probe(1e-9))
    assert found["estimate"]["hours"] > 0
    assert any("with the whole model" in note and "nothing to decide yet" in note for note in found["notes"])


def test_evaluation_counts_every_pass(recipe: Path) -> None:
    loaded = load_recipe(recipe, ["evaluate.dial=[0.6]"])
    found = list(passes(loaded, Images(1437, 360, ""), [False, True, True], gated=True))
    single = [one for one in found if one.batch_size == 1]
    assert [one.images for one in single] == [360]
    calibration = 2 * 256 + 2 * CALIBRATIONS * 256
    # Dense, after each phase, before fine-tuning, the two rows, promised, sorted, by sample, the dial's.
    assert sum(one.images for one in found) == calibration + (1 + 3 + 1 + 2 + 3 + 1) * 360


def test_images_are_known_listed_stated_or_assumed(recipe: Path, tmp_path: Path) -> None:
    def count(data: str, stated: tuple[int, ...] = (), classes: int = 10) -> Images:
        return count_images(load_recipe(recipe, [f"data={data}", f"model.num_classes={classes}"]), stated)

    here = "{source: timm, root: " + str(tmp_path / "gone") + ", input_size: 8, batch_size: 4, "
    assert count(here + "name: torch/cifar10}").train == 50_000
    assert count(here + "name: torch/cifar10, subset: 640, eval_split: train}").evaluation == 50_000
    assert count(here + "name: torch/cifar10, subset: 640}").train == 640
    unknown = count(here + "subset: 12}")
    assert (unknown.train, unknown.evaluation, unknown.is_known) == (12, None, False)
    assert count(here + "}", (100, 10)) == Images(100, 10, "as stated")
    big = count(here + "}", classes=1000)
    assert (big.train, big.evaluation) == (1_281_167, 50_000)
    assert big.source.startswith("assumed to be ImageNet-1k's")
    for split in ("train", "val"):
        for label in ("a", "b"):
            folder = tmp_path / "gone" / split / label
            folder.mkdir(parents=True)
            for i in range(3 if split == "train" else 2):
                (folder / f"{i}.png").write_bytes(b"not looked at")
    assert count(here + "}") == Images(6, 4, "known to the data source")
    with pytest.raises(UsdcoreError, match="test"):
        count(here + "eval_split: test}")


def test_without_the_number_of_images_there_are_no_hours(recipe: Path) -> None:
    data = "data={source: timm, root: far/away, input_size: 8, batch_size: 64}"
    found = forecast(load_recipe(recipe, [data]), probe=ticking())
    assert found["steps"] is found["estimate"]["hours"] is None
    assert [stage["step_seconds"] for stage in found["estimate"]["stages"]] == [1, 1, 1]
    assert any("--images TRAIN,EVALUATION" in note for note in found["notes"])


def test_generators_are_left_as_they_were(recipe: Path) -> None:
    state = torch.get_rng_state()
    forecast(load_recipe(recipe), probe=Probe(1e-9))
    assert torch.equal(torch.get_rng_state(), state)


def test_bad_numbers_end_the_probe_and_not_the_plan(recipe: Path) -> None:
    found = forecast(load_recipe(recipe, ["train.lr=1.0e38", "train.opt=sgd"]), probe=ticking())
    assert found["estimate"] == {"is_estimate": True, "hours": None}
    assert any("came to bad numbers" in note for note in found["notes"])


IMAGENET = sorted([*RECIPES.glob("imagenet/*.yaml"), *RECIPES.glob("paper/base/*imagenet*.yaml")])


@pytest.mark.parametrize("path", IMAGENET, ids=[path.stem for path in IMAGENET])
def test_imagenets_images_need_not_be_here(path: Path) -> None:
    found = count_images(load_recipe(path))
    assert (found.train, found.evaluation) == (1_281_167, 50_000)


@pytest.mark.slow
@pytest.mark.parametrize("path", IMAGENET, ids=[path.stem for path in IMAGENET])
def test_imagenet_recipes_are_planned_without_data(path: Path) -> None:
    loaded = read_recipe(path)
    found = forecast(loaded.recipe, loaded.written, probe=Probe(10))
    steps = sum(phase.epochs for phase in loaded.recipe.phases) * (1_281_167 // loaded.recipe.data.batch_size)
    assert found["steps"] == steps
    assert found["estimate"]["hours"] > 0
