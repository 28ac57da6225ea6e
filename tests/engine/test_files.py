"""Nothing is lost: full disks, torn lines, killed writers, damaged checkpoints, two runs in one folder."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from attacks import LOST, Attack, made, run
from trying import try_out

import usdcore
from usdcore.engine import finish
from usdcore.engine import folder as folder_module
from usdcore.engine.checkpoint import Checkpoints, read_state
from usdcore.engine.folder import RunFolder
from usdcore.errors import BudgetMissed, UsdcoreError
from usdcore.files import append_line, read_bytes, write_atomic
from usdcore.recipe import load_recipe


@pytest.fixture(scope="module", autouse=True)
def _prepared() -> None:
    """What attacks start from is made before the clock runs."""
    made.model_bytes()
    run.finished()


@pytest.mark.parametrize("attack", LOST, ids=lambda a: f"{a.part}: {a.name}")
def test_attack(attack: Attack, tmp_path: Path) -> None:
    try_out(attack, tmp_path)


def broken_off(out: Path, monkeypatch: pytest.MonkeyPatch, after: int) -> None:
    """A run that writes a checkpoint at every step, interrupted after so many."""
    written, real = 0, Checkpoints.write

    def write(self: Checkpoints, state: dict[str, Any]) -> None:
        nonlocal written
        real(self, state)
        written += 1
        if written == after:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Checkpoints, "write", write)
        with pytest.raises(KeyboardInterrupt):
            usdcore.run(run.finished() / "tiny.yaml", out)


def again(out: Path) -> None:
    with contextlib.suppress(BudgetMissed):
        usdcore.run(run.finished() / "tiny.yaml", out)


def to_the_model(out: Path, monkeypatch: pytest.MonkeyPatch) -> bytes:
    """The same command again, as far as the file of the model."""

    def enough(self: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(finish.Finish, "_in_new_process", enough)
        with pytest.raises(KeyboardInterrupt):
            usdcore.run(run.finished() / "tiny.yaml", out)
    return (out / "model.safetensors").read_bytes()


@pytest.mark.parametrize("damage", ["flipped", "cut", "gone"])
def test_a_run_goes_on_from_the_state_before_a_damaged_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, damage: str, capsys: pytest.CaptureFixture[str]
) -> None:
    broken_off(tmp_path / "run", monkeypatch, 4)
    last = tmp_path / "run" / "checkpoints" / "last.safetensors"
    assert read_state(last)["fit"]["step"] == 4
    content = last.read_bytes()
    changed = {"flipped": made.flipped(content, 8 * len(content) // 2), "cut": content[:-9]}
    last.write_bytes(changed[damage]) if damage in changed else last.unlink()
    after = to_the_model(tmp_path / "run", monkeypatch)
    said = capsys.readouterr().err.replace("\n", "")
    assert "previous.safetensors" in said
    assert ("Going on from the checkpoint before it" in said) == (damage != "gone")
    assert after == (run.finished() / "run" / "model.safetensors").read_bytes()


def test_a_full_disk_ends_the_run_with_one_message_and_it_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = os.fsync

    def full(handle: int) -> None:
        if "last.safetensors" in Path(f"/proc/self/fd/{handle}").readlink().name:
            raise OSError(28, "No space left on device")
        real(handle)

    with monkeypatch.context() as patch:
        patch.setattr("usdcore.files.os.fsync", full)
        with pytest.raises(
            UsdcoreError, match=r"last.safetensors: can't be written \(No space left .*\).* the same command"
        ):
            usdcore.run(run.finished() / "tiny.yaml", tmp_path / "run")
    after = to_the_model(tmp_path / "run", monkeypatch)
    assert after == (run.finished() / "run" / "model.safetensors").read_bytes()
    assert not list(tmp_path.rglob("*.aside"))


def test_a_torn_line_does_not_break_a_run_that_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    broken_off(tmp_path / "run", monkeypatch, 7)
    with (tmp_path / "run" / "metrics.jsonl").open("ab") as file:
        file.write(b'{"epoch": 0, "st\xc3')
    to_the_model(tmp_path / "run", monkeypatch)
    lines = (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line).get("epoch") for line in lines] == [0, None]


@pytest.mark.parametrize("text", ["{", "{}", '{"budget": 1}', "NaN", "\x00"])
def test_a_damaged_result_is_written_again(tmp_path: Path, text: str) -> None:
    out = run.run_in(tmp_path)
    before = json.loads((out / "result.json").read_text())
    (out / "result.json").write_text(text)
    again(out)
    after = json.loads((out / "result.json").read_text())
    assert after["budget"] == before["budget"]
    assert after["format"] == 1


def test_a_result_of_another_format_is_left_alone(tmp_path: Path) -> None:
    out = run.run_in(tmp_path)
    stated = json.loads((out / "result.json").read_text()) | {"format": 2}
    (out / "result.json").write_text(json.dumps(stated))
    with pytest.raises(UsdcoreError, match="of another format than the 1 of this usdcore"):
        usdcore.run(run.finished() / "tiny.yaml", out)


def test_what_a_killed_writer_left_is_cleared_away(tmp_path: Path) -> None:
    out = run.run_in(tmp_path)
    (out / "checkpoints" / f".last.safetensors.{'a' * 16}.aside").touch()
    (out / ".mine.aside").touch()
    run_folder = RunFolder(out, load_recipe(run.finished() / "tiny.yaml"))
    run_folder.claim()
    run_folder.release()
    assert {path.name for path in out.rglob("*.aside")} == {".mine.aside"}


def test_a_report_of_a_killed_run_says_how_to_go_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    broken_off(tmp_path / "run", monkeypatch, 2)
    from usdcore.report.page import write_report

    with pytest.raises(UsdcoreError, match=r"the run is unfinished .* goes on where it stopped"):
        write_report(tmp_path / "run")


def test_one_process_in_a_folder_at_a_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(folder_module, "PATIENCE", 0.1)
    out, recipe = run.run_in(tmp_path), load_recipe(run.finished() / "tiny.yaml")
    (out / "result.json").unlink()
    first = RunFolder(out, recipe)
    first.claim()
    with pytest.raises(UsdcoreError, match="another process runs in this folder; wait for it, or choose another"):
        usdcore.run(run.finished() / "tiny.yaml", out)
    first.release()
    RunFolder(out, recipe).claim()


def test_a_folder_is_free_when_its_process_is_killed(tmp_path: Path) -> None:
    code = (
        "import os, signal, sys\n"
        "from pathlib import Path\n"
        "from usdcore.engine.folder import RunFolder\n"
        "from usdcore.recipe import load_recipe\n"
        "RunFolder(Path(sys.argv[2]), load_recipe(sys.argv[1])).claim()\n"
        "os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    recipe = run.finished() / "tiny.yaml"
    subprocess.run([sys.executable, "-c", code, str(recipe), str(tmp_path / "run")], check=False)
    mine = RunFolder(tmp_path / "run", load_recipe(recipe))
    mine.claim()
    mine.release()


@pytest.mark.skipif(os.geteuid() != 0 or shutil.which("mount") is None, reason="only root can make a small disk")
def test_a_disk_that_is_really_full(tmp_path: Path) -> None:
    made_disk = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k", "none", str(tmp_path)], check=False)
    if made_disk.returncode:
        pytest.skip("mounting is not allowed here")
    try:
        (tmp_path / "filler").write_bytes(bytes(40_000))
        found = Checkpoints(tmp_path / "checkpoints")
        found.write({"moment": 1})
        with pytest.raises(UsdcoreError, match=r"No space left on device"):
            found.write({"moment": 2, "text": "x" * 100_000})
        with pytest.raises(UsdcoreError, match=r"No space left on device|no room for the whole line"):
            append_line(tmp_path / "log", "x" * 100_000)
        assert read_bytes(tmp_path / "log", 10) == b""
        assert Checkpoints(found.folder).read()[0] == {"moment": 1}
    finally:
        subprocess.run(["umount", str(tmp_path)], check=True)


def test_new_files_have_the_usual_permissions(tmp_path: Path) -> None:
    before = os.umask(0o027)
    try:
        assert write_atomic(tmp_path / "x", b"").stat().st_mode & 0o777 == 0o640
    finally:
        os.umask(before)
