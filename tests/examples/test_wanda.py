"""The example package, built as a wheel and installed beside usdcore: listed, run by its recipe, tested by the kit."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[2] / "examples" / "usdcore-wanda"


@pytest.fixture(scope="module")
def environment(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Of a process that has the wheel."""
    folder = tmp_path_factory.mktemp("wheel")
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check"]
    build = ["wheel", "-q", "--no-build-isolation", "--no-deps", "-w", str(folder), str(PACKAGE)]
    subprocess.run([*pip, *build], check=True, timeout=120, capture_output=True)
    (wheel,) = folder.glob("usdcore_wanda-0.1.0-*.whl")
    site = folder / "site"
    subprocess.run([*pip, "install", "-q", "--no-deps", "--target", str(site), str(wheel)], check=True, timeout=120)
    return {**os.environ, "PYTHONPATH": str(site), "OMP_NUM_THREADS": "1"}


def usdcore(environment: dict[str, str], *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "usdcore", *arguments]
    return subprocess.run(command, capture_output=True, text=True, env=environment, timeout=300, check=False)


def test_it_is_listed(environment: dict[str, str]) -> None:
    done = usdcore(environment, "plugins", "list", "--json")
    (row,) = [row for row in json.loads(done.stdout) if row["name"] == "wanda"]
    assert (row["kind"], row["distribution"], row["version"]) == ("strategy", "usdcore-wanda", "0.1.0")
    assert row["state"] == "ok"


def test_it_can_be_left_out(environment: dict[str, str]) -> None:
    done = usdcore({**environment, "USDCORE_PLUGINS": ""}, "plugins", "show", "wanda")
    assert done.returncode == 1


def test_its_recipe_runs(environment: dict[str, str], tmp_path: Path) -> None:
    done = usdcore(environment, "run", str(PACKAGE / "recipe.yaml"), "--out", str(tmp_path / "out"))
    assert done.returncode == 0, done.stderr
    result = json.loads((tmp_path / "out" / "result.json").read_text())
    assert 0.55 < result["compressed"]["macs"] / result["dense"]["macs"] <= 0.6
    assert result["compressed"]["top1"] > 50


def test_a_recipe_that_gives_it_nothing_to_see_is_refused(environment: dict[str, str], tmp_path: Path) -> None:
    text = (
        (PACKAGE / "recipe.yaml")
        .read_text()
        .replace("  - name: prune\n    epochs: 1", "  - name: prune\n    epochs: 0")
    )
    (tmp_path / "r.yaml").write_text(text)
    done = usdcore(environment, "recipe", "validate", str(tmp_path / "r.yaml"))
    assert done.returncode == 1
    assert "wanda looks at inputs, and the phases that name it have 0 epochs; give one of them an epoch" in done.stderr


def test_it_passes_the_kit(environment: dict[str, str]) -> None:
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-W", "error", str(PACKAGE / "tests")]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=300, cwd=PACKAGE)
    assert done.returncode == 0, done.stdout
