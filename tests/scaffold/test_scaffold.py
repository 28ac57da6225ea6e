"""`usdcore plugins new` writes a package that works as it is, and refuses what it can't write."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from usdcore.cli import main


@pytest.fixture(autouse=True)
def _inside(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def test_it_passes_the_kit_unedited(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plugins", "new", "my-method"]) == 0
    said = capsys.readouterr().out
    root, site = tmp_path / "my-method", tmp_path / "site"
    for file in ("pyproject.toml", "README.md", "my_method/config.py", "my_method/method.py"):
        assert (root / file).is_file()
        assert f"my-method/{file}" in said
    pip = [sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--no-build-isolation", "--target", str(site)]
    environment = {**os.environ, "PYTHONPATH": str(site), "PIP_DISABLE_PIP_VERSION_CHECK": "1"}
    subprocess.run([*pip, str(root)], check=True, env=environment, timeout=120)
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-W", "error", str(root / "tests")]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=300, cwd=root)
    assert done.returncode == 0, done.stdout
    assert " failed" not in done.stdout
    assert int(done.stdout.split(" passed")[0].split()[-1]) > 20


def test_the_files_are_clean(tmp_path: Path) -> None:
    """As a stranger's linter would have them: no name left open, nothing unused, formatted."""
    assert main(["plugins", "new", "my-method"]) == 0
    assert not [path for path in (tmp_path / "my-method").rglob("*.*") if "{{" in path.read_text()]
    options = ["--select", "E,F,UP,B,D1,RUF", "--line-length", "120", "--isolated"]
    for command in (["check", *options], ["format", "--check", "--isolated", "--line-length", "120"]):
        done = subprocess.run([sys.executable, "-m", "ruff", *command, "my-method"], capture_output=True, text=True)
        assert done.returncode == 0, done.stdout


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("My_Method", "'My_Method' can't name a package: use at most 50 small letters"),
        ("-x", "No such option"),
        ("a--b", "can't name a package"),
        ("x" * 51, "can't name a package"),
        ("../up", "can't name a package"),
        ("json", "a module called 'json' is there already"),
        ("class", "a module called 'class' is there already"),
        ("torch", "a module called 'torch' is there already"),
        ("uvc", "a strategy called 'uvc' is registered already, by usdcore; choose another name"),
    ],
)
def test_names_that_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str, text: str) -> None:
    assert main(["plugins", "new", name]) == 1
    assert text in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_nothing_is_overwritten(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "pyproject.toml").write_text("kept")
    assert main(["plugins", "new", "mine"]) == 1
    assert "mine is there already, and nothing in it was changed" in capsys.readouterr().err
    assert [path.name for path in (tmp_path / "mine").iterdir()] == ["pyproject.toml"]
    assert (tmp_path / "mine" / "pyproject.toml").read_text() == "kept"


def test_a_folder_that_takes_no_file(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    written: list[Path] = []

    def full(path: Path, text: str) -> int:
        if written:
            raise OSError(28, "No space left on device")
        written.append(path)
        with path.open("w") as file:
            return file.write(text)

    monkeypatch.setattr(Path, "write_text", full)
    assert main(["plugins", "new", "mine"]) == 1
    assert "mine can't be written (No space left on device)" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []
