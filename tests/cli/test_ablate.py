"""`usdcore ablate` as a user types it: what it costs to start, its exit codes, and what bad input says."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from ablate.small import ABLATION, write_small

from usdcore.cli import main

TABLE = str(Path(__file__).parents[2] / "recipes/paper/usdc_table3.yaml")


def imports_torch(*arguments: str) -> tuple[int, bool, str]:
    code = (
        "import sys\nfrom usdcore.cli import main\ncode = main(sys.argv[1:])\n"
        "print(code, 'torch' in sys.modules or 'timm' in sys.modules, file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True, check=True)
    *words, last = done.stderr.strip().splitlines()
    return int(last.split()[0]), last.split()[1] == "True", "\n".join(words)


def test_listing_imports_no_torch(tmp_path: Path) -> None:
    assert imports_torch("ablate", TABLE, "--list", "--out", str(tmp_path))[:2] == (0, False)


def test_a_bad_file_imports_no_torch(tmp_path: Path) -> None:
    path = write_small(tmp_path, ABLATION.replace("rows:", "rosw:"))
    code, has_torch, words = imports_torch("ablate", str(path))
    assert (code, has_torch) == (1, False)
    assert "rosw: unknown key; did you mean 'rows'?" in words


def test_list_of_a_shipped_table(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["ablate", TABLE, "--scale", "smoke", "--list", "--json", "--out", str(tmp_path)]) == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["ablation"], found["scale"], found["runs"], found["left"]) == ("usdc-table-3", "smoke", 8, 8)
    assert main(["ablate", TABLE, "--scale", "smoke", "--list", "--out", str(tmp_path)]) == 0
    assert "8 of 8 runs are left; 8 of them would run here" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--scale", "smok"], "it has no scale 'smok'; did you mean 'smoke'?"),
        (["--row", "statik only"], "there is no such row at scale imagenet; did you mean 'static only'"),
        (["--seed", "7"], "--seed 7: the seeds at scale imagenet are 0"),
        (["--shard", "3/2"], "'3/2' is no part of a whole; write 1/4 for the first of four"),
        (["--shard", "half"], "'half' is no part of a whole"),
        (["--set", "train.lr=fast"], "train.lr: 'fast' is not a number"),
    ],
)
def test_mistakes(arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["ablate", TABLE, "--list", *arguments]) == 1
    assert message in capsys.readouterr().err


def test_shards_of_a_listing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    here = []
    for part in ("1/2", "2/2"):
        shown = ["--list", "--json", "--out", str(tmp_path), "--shard", part]
        assert main(["ablate", TABLE, "--scale", "smoke", *shown]) == 0
        rows = json.loads(capsys.readouterr().out)["rows"]
        here.append({row["folder"] for row in rows if row["here"] and not row["row"].startswith("(")})
    assert len(here[0]) == len(here[1]) == 4
    assert not here[0] & here[1]


def test_no_such_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["ablate", str(tmp_path / "no.yaml")]) == 1
    assert "there is no file" in capsys.readouterr().err


def test_a_launcher_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert main(["ablate", str(write_small(tmp_path)), "--out", str(tmp_path / "out")]) == 1
    assert "--shard 1/2" in capsys.readouterr().err
