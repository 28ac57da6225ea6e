"""The commands that need a run, as a user types them: what they print, their exit codes, and what bad input says."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from usdcore.cli import main
from usdcore.errors import BudgetMissed

RECIPE = """
name: fast
model: {name: vit_tiny_patch16_224, num_classes: 10, kwargs: {patch_size: 4, embed_dim: 32, depth: 2, num_heads: 2}}
data: {source: digits, input_size: 8, batch_size: 64}
budget: {macs: 0.7, batch_size: 32}
seed: 0
threads: 1
train: {lr: 2.0e-3}
phases:
  - {name: search, epochs: 3, strategies: [{use: usdc-static, lr: 0.1}, {use: usdc-dynamic, gate_network: G5}]}
evaluate: {batch_sizes: [1, 32], calibration_images: 256}
latency: {batch_sizes: [1], repeats: 1}
"""


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, int]:
    folder = tmp_path_factory.mktemp("cli")
    (folder / "fast.yaml").write_text(RECIPE)
    code = main(["run", str(folder / "fast.yaml"), "--out", str(folder / "run")])
    return folder / "fast.yaml", folder / "run", code


def test_run_prints_the_table(done: tuple[Path, Path, int], capsys: pytest.CaptureFixture[str]) -> None:
    recipe, out, code = done
    assert main(["run", str(recipe), "--out", str(out)]) == code
    text = capsys.readouterr().out
    assert "compressed" in text
    assert "The budget is" in text
    assert code == (0 if json.loads((out / "result.json").read_text())["budget"]["met"] else 3)


def test_eval_json(done: tuple[Path, Path, int], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["eval", str(done[1]), "--batch-size", "8", "--scope", "sample", "--json"]) == 0
    (row,) = json.loads(capsys.readouterr().out)["eval"]
    assert (row["batch_size"], row["scope"], row["images"]) == (8, "sample", 360)


def test_eval_table(done: tuple[Path, Path, int], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["eval", str(done[1])]) == 0
    assert "Executed MACs" in capsys.readouterr().out


def test_eval_out_of_reach(done: tuple[Path, Path, int], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["eval", str(done[1]), "--budget", "0.01"]) == 1
    error = capsys.readouterr().err
    assert "out of reach for this model's gates" in error or "no gates" in error


@pytest.mark.parametrize("budget", ["0", "1.5", "-1"])
def test_eval_nonsense_budget(done: tuple[Path, Path, int], capsys: pytest.CaptureFixture[str], budget: str) -> None:
    assert main(["eval", str(done[1]), "--budget", budget]) == 1
    assert "above 0 and at most 1" in capsys.readouterr().err


def test_eval_of_no_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["eval", str(tmp_path)]) == 1
    assert "holds no recipe.yaml" in capsys.readouterr().err


def test_plan_needs_no_data(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    recipe = Path(__file__).parents[2] / "recipes/imagenet/deit_small_usdc.yaml"
    assert main(["plan", str(recipe), "--probe", "0", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["dense"] == {"macs": 4_598_882_304, "params": 22_050_664}
    assert found["phases"][0]["least"] < 0.02
    assert main(["plan", str(recipe), "--probe", "0", "--set", "budget.macs=0.01"]) == 1
    assert "can't be reached" in capsys.readouterr().err


def folder_of_images(root: Path, classes: int = 2) -> Path:
    rng = np.random.default_rng(0)
    for split in ("train", "test"):
        for label in range(classes):
            (root / split / str(label)).mkdir(parents=True)
            for i in range(6):
                pixels = rng.integers(0, 255, (8, 8, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(root / split / str(label) / f"{i}.png")
    return root


def images_recipe(root: Path, *overrides: str) -> list[str]:
    recipe = root.parent / "images.yaml"
    recipe.write_text(RECIPE)
    data = f"data={{source: timm, root: {root}, eval_split: test, input_size: 8, batch_size: 4}}"
    sets = [data, "model.num_classes=2", *overrides]
    return ["run", str(recipe), "--out", str(root.parent / "out"), *(part for s in sets for part in ("--set", s))]


def test_own_images_from_folders(tmp_path: Path) -> None:
    assert main(images_recipe(folder_of_images(tmp_path / "data"))) in (0, 3)
    assert json.loads((tmp_path / "out" / "result.json").read_text())["provenance"]["data"]["train_images"] == 12


def test_bad_data(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = folder_of_images(tmp_path / "data")
    assert main(images_recipe(tmp_path / "nowhere")) == 1
    assert "nowhere" in capsys.readouterr().err
    assert main(images_recipe(root, "model.num_classes=3")) == 1
    assert "the data has 2 classes" in capsys.readouterr().err
    (root / "train" / "1" / "0.png").write_bytes(b"not an image")
    assert main(images_recipe(root)) == 1
    assert "0.png" in capsys.readouterr().err
    assert not (tmp_path / "out" / "model.safetensors").exists()


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("data.batch_size=0", "data.batch_size"),
        ("budget.macs=1.2", "budget.macs"),
        ("budget.macs=0", "budget.macs"),
        ("model.nmae=x", "did you mean 'name'"),
        ("phases.0.strategies.0.use=usdc-statik", "did you mean 'usdc-static'"),
        ("phases.0.strategies.1.gate_network=G10", "G1"),
    ],
)
def test_bad_recipes(
    done: tuple[Path, Path, int], capsys: pytest.CaptureFixture[str], override: str, message: str
) -> None:
    assert main(["run", str(done[0]), "--set", override]) == 1
    assert message in capsys.readouterr().err


def test_an_interrupted_run_says_how_to_go_on(done: tuple[Path, Path, int], tmp_path: Path) -> None:
    code = (
        "import os, signal, sys\n"
        "from usdcore.engine import fit\n"
        "from usdcore.cli import main\n"
        "real = fit.Fit._step\n"
        "def step(self, *args):\n"
        "    if self.state.step == 3: os.kill(os.getpid(), signal.SIGINT)\n"
        "    return real(self, *args)\n"
        "fit.Fit._step = step\n"
        "sys.exit(main(['run', sys.argv[1], '--out', sys.argv[2]]))\n"
    )
    command = [sys.executable, "-c", code, str(done[0]), str(tmp_path / "run")]
    ended = subprocess.run(command, capture_output=True, text=True, check=False)
    assert ended.returncode == 130, ended.stderr
    assert "To go on: the same command again" in ended.stderr
    assert (tmp_path / "run" / "checkpoints" / "last.safetensors").is_file()


def test_a_search_that_breaks_its_promise_ends_the_run_with_one_message(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def missed(*_: object) -> None:
        msg = "the search came to 1.0"
        raise BudgetMissed(msg)

    monkeypatch.setattr("usdcore.engine.pipeline.run", missed)
    (tmp_path / "fast.yaml").write_text(RECIPE)
    assert main(["run", str(tmp_path / "fast.yaml"), "--out", str(tmp_path / "run")]) == 3
    assert capsys.readouterr().err == "budget missed: the search came to 1.0\n"
