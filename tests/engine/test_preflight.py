"""What is looked at before anything is trained: by `plan`, and by the start of a run."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from usdcore.cli import main
from usdcore.construct import create
from usdcore.engine.dryrun import dry_run
from usdcore.engine.preflight import notes, preflight
from usdcore.engine.setup import make_base
from usdcore.recipe import RecipeError, load_recipe, read_recipe

TEXT = """\
name: small
model: {name: vit_tiny_patch16_224, num_classes: 10, kwargs: {patch_size: 4, embed_dim: 32, depth: 2, num_heads: 2}}
data: {source: digits, input_size: 8, batch_size: 64}
budget: {macs: 0.7, batch_size: 32}
seed: 0
train: {lr: 2.0e-3}
phases:
  - {name: search, epochs: 1, strategies: [usdc-static]}
  - {name: finetune, epochs: 1}
"""


@pytest.fixture
def recipe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "x.yaml").write_text(TEXT)
    return "x.yaml"


def lines(recipe: str, *overrides: str) -> list[str]:
    loaded = read_recipe(recipe, overrides)
    with pytest.raises(RecipeError) as caught:
        preflight(loaded.recipe, loaded.written)
    return [str(problem) for problem in caught.value.problems]


def test_all_of_it_comes_at_once(recipe: str) -> None:
    found = lines(
        recipe, "train.opt=adamm", "phases.1.train.opt=x" * 1, "model.weights=w.pt", "model.kwargs.num_head=3"
    )
    assert [line.split(":")[0] for line in found] == [
        "--set train.opt=adamm train.opt",
        "--set phases.1.train.opt=x phases[1].train.opt",
        "--set model.weights=w.pt model.weights",
        "--set model.kwargs.num_head=3 model.kwargs.num_head",
    ]


def test_an_optimizer_that_no_phase_uses_may_be_anything(recipe: str) -> None:
    each = [f"phases.{i}.train={{opt: sgd}}" for i in range(2)]
    preflight(load_recipe(recipe, ["train.opt=nothing", *each]))


def test_without_the_files_the_keys_are_named(recipe: str) -> None:
    with pytest.raises(RecipeError, match=r"^train\.opt: timm has no optimizer 'adamm'; did you mean"):
        dry_run(load_recipe(recipe, ["train.opt=adamm"]))


def test_a_run_that_goes_on_does_not_need_its_first_weights(recipe: str) -> None:
    loaded = load_recipe(recipe, ["model.weights=gone.pt"])
    preflight(loaded, fresh=False)
    with pytest.raises(RecipeError, match="there is no file"):
        preflight(loaded)
    with pytest.raises(RecipeError, match="is a folder; name the file"):
        preflight(load_recipe(recipe, ["model.weights=."]))


def test_own_weights_are_tried(recipe: str) -> None:
    model = load_recipe(recipe).model
    weights = create(make_base(model, 8, 1)).state_dict()
    save_file(weights, "good.safetensors")
    save_file({"head.bias": torch.zeros(3)}, "bad.safetensors")
    assert dry_run(load_recipe(recipe, ["model.weights=good.safetensors"]))["model"] == model.name
    loaded = read_recipe(recipe, ["model.weights=bad.safetensors"])
    with pytest.raises(RecipeError, match=r"model\.weights: bad\.safetensors can't be used"):
        dry_run(loaded.recipe, loaded.written)


def test_what_is_not_here_is_noted(recipe: str, capsys: pytest.CaptureFixture[str]) -> None:
    data = "data={source: timm, root: far/away, input_size: 8, batch_size: 64}"
    plan = ["plan", recipe, "--probe", "0", "--images", "64,16", "--set", data]
    assert main([*plan, "--set", "device=cpu"]) == 0
    note = "data.root: far/away is not here; a dry run does not need it, a run will"
    assert f"note: {note}" in capsys.readouterr().out.splitlines()
    assert main([*plan, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["notes"] == [note]
    asked = notes(load_recipe(recipe, ["device=cuda"]))
    assert len(asked) == (0 if torch.cuda.is_available() else 1)


@pytest.mark.parametrize(
    ("name", "size", "good"),
    [
        ("vit_tiny_patch16_224", 224, True),
        ("vit_so400m_patch14_siglip_384", 384, True),
        ("vit_tiny_patch16_224", 230, False),
    ],
)
def test_images_are_whole_patches_but_for_timms_own_sizes(recipe: str, name: str, size: int, good: bool) -> None:
    overrides = [f"model={{name: {name}, num_classes: 10}}", f"data.input_size={size}"]
    loaded = load_recipe(recipe, overrides)
    if good:
        preflight(loaded)
    else:
        with pytest.raises(RecipeError, match="230 is not a multiple of the model's patch size 16; use 224 or 240"):
            preflight(loaded)


def test_a_constructor_that_does_not_end_is_stopped(recipe: str) -> None:
    for argument in ("depth: 60000", "embed_dim: 65536, depth: 4000"):
        (line,) = lines(recipe, f"model.kwargs={{patch_size: 4, num_heads: 2, {argument}}}")
        assert "than this machine's memory holds; check model.kwargs" in line


def test_a_budget_out_of_reach_in_a_later_phase(recipe: str) -> None:
    with pytest.raises(RecipeError, match=r"phases\[0\]: budget macs 0\.001 can't be reached"):
        dry_run(load_recipe(recipe, ["budget.macs=0.001"]))


@pytest.mark.parametrize(("strategies", "teachers"), [("[usdc-static]", 0), ("[usdc-static, distill]", 1)])
def test_a_dry_run_counts_teachers(recipe: str, strategies: str, teachers: int) -> None:
    found = dry_run(load_recipe(recipe, [f"phases.0.strategies={strategies}"]))
    assert found["memory"]["teachers"] == teachers * 4 * found["dense"]["params"]
    assert found["phases"][0]["macs_per_image"] == (3 + teachers) * found["dense"]["macs"]
