"""A table from outside: it runs, stops, goes on, runs nothing twice, and shares what is the same."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
from ablate.small import ABLATION, evaluate_here, planned, pretend, write_small
from safetensors.torch import load_file

from usdcore.ablate.jobs import Jobs, shard
from usdcore.ablate.locks import holder, locked
from usdcore.cli import main
from usdcore.engine.fit import Fit
from usdcore.engine.pipeline import run
from usdcore.plans import parse_plan


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A table whose first start was broken off in the second run's search."""
    folder = tmp_path_factory.mktemp("ablation")
    path, out = write_small(folder), folder / "out"
    with pytest.MonkeyPatch.context() as patch:
        evaluate_here(patch)
        assert main(["ablate", str(path), "--out", str(out), "--row", "magnitude"]) == 0
        with pytest.MonkeyPatch.context() as inner:
            real = Fit._step

            def step(fit: Fit, *arguments: Any) -> Any:
                if fit.stage.name == "search" and fit.state.step == 3:
                    os.kill(os.getpid(), signal.SIGINT)
                return real(fit, *arguments)

            inner.setattr(Fit, "_step", step)
            assert main(["ablate", str(path), "--out", str(out)]) == 130
        _, jobs = planned(path, out / "own")
        assert jobs.of_row["Taylor", 0].state == "begun"
        assert main(["ablate", str(path), "--out", str(out)]) == 0
    return path, out


def results(out: Path) -> dict[str, int]:
    return {str(path): path.stat().st_mtime_ns for path in out.rglob("result.json")}


def table(out: Path, scale: str = "own") -> dict[str, Any]:
    found: dict[str, Any] = json.loads((out / "tables" / f"small-table-{scale}.json").read_text())
    return found


def cell(found: dict[str, Any], row: str, column: str) -> dict[str, Any]:
    (line,) = [line for line in found["rows"] if line["name"] == row]
    one: dict[str, Any] = line["cells"][column]
    return one


def test_each_run_is_a_run_folder_and_the_dense_model_is_trained_once(done: tuple[Path, Path]) -> None:
    _, out = done
    names = sorted(path.parent.name.rpartition("-")[0] for path in (out / "own").glob("*/result.json"))
    assert names == ["dense-s0", "magnitude-s0", "taylor-s0"]
    for folder in (out / "own").glob("*-s0-*"):
        for name in ("recipe.yaml", "metrics.jsonl", "model.safetensors", "report.html"):
            assert (folder / name).is_file(), name
    dense = [line for path in (out / "own").glob("*/metrics.jsonl") for line in path.read_text().splitlines()]
    epochs = [json.loads(line) for line in dense if '"stage": "dense"' in line]
    assert len(epochs) == 3 * 2
    assert len({line["time"] for line in epochs}) == 2


def test_the_table_has_the_numbers_of_the_runs(done: tuple[Path, Path]) -> None:
    path, out = done
    _, jobs = planned(path, out / "own")
    result = json.loads((jobs.of_row["Taylor", 0].folder / "result.json").read_text())
    found = table(out)
    assert cell(found, "Taylor", "top1")["values"] == [result["compressed"]["top1"]]
    assert cell(found, "Taylor", "params")["mean"] == result["compressed"]["params"]
    assert cell(found, "dense", "top1")["values"] == [result["dense"]["top1"]]
    assert cell(found, "dense", "macs") | {"paper": 0} == {
        "status": "exact", "mean": result["dense"]["macs"], "spread": None, "values": [result["dense"]["macs"]],
        "paper": 0, "difference": None,
    }  # fmt: skip
    assert cell(found, "somebody else's", "top1")["status"] == "not here"
    (one,) = next(row["runs"] for row in found["rows"] if row["name"] == "Taylor")
    assert one["provenance"]["data"]["fingerprint"] == result["provenance"]["data"]["fingerprint"]
    assert one["recipe_sha256"] == result["recipe_sha256"]
    assert Path(one["starts_from"]).name.startswith("dense-s0-")


def test_a_second_call_runs_nothing(done: tuple[Path, Path], capsys: pytest.CaptureFixture[str]) -> None:
    path, out = done
    before = results(out)
    assert main(["ablate", str(path), "--out", str(out)]) == 0
    assert results(out) == before
    printed = capsys.readouterr()
    assert "[1/" not in printed.err
    assert "| Taylor |" in printed.out


def test_a_run_that_shared_equals_one_that_did_not(done: tuple[Path, Path], tmp_path: Path) -> None:
    path, out = done
    _, jobs = planned(path, out / "own")
    folder = jobs.of_row["Taylor", 0].folder
    with pytest.MonkeyPatch.context() as patch:
        evaluate_here(patch)
        alone = run(folder / "recipe.yaml", tmp_path / "alone")
    ours, theirs = load_file(folder / "model.safetensors"), load_file(tmp_path / "alone" / "model.safetensors")
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)
    result = json.loads((folder / "result.json").read_text())
    for key in ("dense", "compressed"):
        numbers = ("top1", "macs", "params", "epochs")
        assert [result[key][name] for name in numbers] == [alone[key][name] for name in numbers]
    assert result["eval"] == alone["eval"]


def test_only_a_changed_row_is_run_again(done: tuple[Path, Path], capsys: pytest.CaptureFixture[str]) -> None:
    path, out = done
    changed = path.with_name("changed.yaml")
    changed.write_text(ABLATION.replace("importance: taylor", "taylor_power: 1"))
    assert main(["ablate", str(changed), "--out", str(out), "--list", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert {row["row"]: row["state"] for row in found["rows"]} == {
        "(dense model that rows start from)": "done",
        "dense": "done, the run of 'magnitude'",
        "magnitude": "done",
        "Taylor": "not run",
        "somebody else's": "not here: the method does not exist here",
    }
    assert (found["left"], found["here"]) == (1, 1)


def test_where_data_lie_is_no_change(done: tuple[Path, Path], capsys: pytest.CaptureFixture[str]) -> None:
    path, out = done
    assert main(["ablate", str(path), "--out", str(out), "--list", "--json", "--set", "data.workers=3"]) == 0
    assert json.loads(capsys.readouterr().out)["left"] == 0


def test_shards_split_the_runs(tmp_path: Path) -> None:
    _, jobs = planned(write_small(tmp_path), tmp_path / "pool", "papers")
    parts = [shard(jobs.all, number, 4) for number in (1, 2, 3, 4)]
    assert sorted(job.key for part in parts for job in part) == sorted(job.key for job in jobs.all)
    assert sum(len(part) for part in parts) == len(jobs.all) == 6
    assert {len(part) for part in parts} == {1, 2}


def test_a_claimed_run_is_left_alone(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    path, out = write_small(tmp_path), tmp_path / "out"
    _, jobs = planned(path, out / "own")
    monkeypatch.setattr("usdcore.ablate.execute.run", lambda *_: pytest.fail("it was run"))
    with locked(jobs.of_row["Taylor", 0].lock) as other:
        assert other is None
        assert main(["ablate", str(path), "--out", str(out), "--list", "--json"]) == 0
        states = {row["row"]: row["state"] for row in json.loads(capsys.readouterr().out)["rows"]}
        assert states["Taylor"].startswith(f"running: process {os.getpid()} on ")
        assert main(["ablate", str(path), "--out", str(out), "--row", "Taylor"]) == 0
    assert f"left to another process: Taylor, seed 0: process {os.getpid()}" in capsys.readouterr().err
    assert holder(jobs.of_row["Taylor", 0].lock) is None


def test_a_dense_model_that_was_damaged(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path, out = write_small(tmp_path), tmp_path / "out"
    _, jobs = planned(path, out / "own")
    stem = jobs.of_row["Taylor", 0].stem
    assert stem is not None
    pretend(Jobs((stem,), {("dense", 0): stem}), "dense", 0, 95.0)
    assert main(["ablate", str(path), "--out", str(out), "--row", "Taylor"]) == 1
    words = capsys.readouterr().err
    assert "no checkpoint is whole; remove this folder to start the run over" in words
    assert str(stem.folder) in words


def test_nothing_run_yet(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path, out = write_small(tmp_path), tmp_path / "out"
    assert main(["ablate", str(path), "--out", str(out), "--table"]) == 0
    text = capsys.readouterr().out
    row = "| magnitude | not run | - | not run | - | not run | 3 G | not run | 80.25 % | not run |"
    assert row in text
    assert "| Taylor | not run | &gt; 39.2M |" in text
    assert not (out / "own").exists()


def test_mean_spread_and_difference_at_the_papers_scale(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path, out = write_small(tmp_path), tmp_path / "out"
    _, jobs = planned(path, out / "papers", "papers")
    for seed, top1 in enumerate((80.0, 81.0, 82.0)):
        pretend(jobs, "magnitude", seed, top1)
    pretend(jobs, "Taylor", 1, 70.0, met=False)
    assert main(["ablate", str(path), "--out", str(out), "--scale", "papers", "--table"]) == 0
    text = capsys.readouterr().out
    assert "| 81.00 % ± 1.00 | 80.25 % | +0.75 points |" in text
    assert "| 70.00 % (1 of 3 seeds) \\* | - | - |" in text
    assert "\\*: a run of this row missed its budget" in text
    found = table(out, "papers")
    assert cell(found, "magnitude", "top1")["difference"] == pytest.approx(0.75)
    assert cell(found, "magnitude", "executed_macs")["difference"] == pytest.approx(100 * (1e6 / 3e9 - 1))
    assert cell(found, "magnitude", "top1@1")["mean"] == 80.0
    assert cell(found, "dense", "macs")["difference"] is not None


def test_a_dense_row_shows_whichever_run_is_finished(tmp_path: Path) -> None:
    path, out = write_small(tmp_path), tmp_path / "out"
    _, jobs = planned(path, out / "own")
    pretend(jobs, "Taylor", 0, 80.0)
    assert main(["ablate", str(path), "--out", str(out), "--table"]) == 0
    assert cell(table(out), "dense", "top1")["values"] == [95.0]
    assert cell(table(out), "magnitude", "top1")["status"] == "not run"


def test_no_difference_to_another_data_sets_numbers(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path, out = write_small(tmp_path), tmp_path / "out"
    _, jobs = planned(path, out / "own")
    pretend(jobs, "magnitude", 0, 80.0)
    assert main(["ablate", str(path), "--out", str(out), "--table"]) == 0
    text = capsys.readouterr().out
    assert "top-1: ours (digits) | top-1: paper (ImageNet-1K) |" in text
    assert "difference" not in text
    assert cell(table(out), "magnitude", "top1")["difference"] is None


def test_the_page_needs_no_other_file(tmp_path: Path) -> None:
    text = ABLATION.replace("A small table", "A <b>bold</b> table")
    path, out = write_small(tmp_path, text), tmp_path / "out"
    assert main(["ablate", str(path), "--out", str(out), "--table"]) == 0
    page = (out / "tables" / "small-table-own.html").read_text()
    assert "A &lt;b&gt;bold&lt;/b&gt; table" in page
    for outside in ("<script", "<link", "<img", 'src="', "http://www.w3.org/1999"):
        assert outside not in page


def test_a_runs_structure_is_drawn_where_a_row_asks_for_it(tmp_path: Path) -> None:
    text = ABLATION.replace("- name: magnitude\n", "- name: magnitude\n    draw: true\n")
    path, out = write_small(tmp_path, text), tmp_path / "out"
    _, jobs = planned(path, out / "own")
    pretend(jobs, "magnitude", 0, 80.0)
    assert main(["ablate", str(path), "--out", str(out), "--table"]) == 0
    assert "5 of 128 hidden" in (out / "tables" / "small-table-own-structure-2.svg").read_text()
    assert "5 of 128 hidden" in (out / "tables" / "small-table-own.html").read_text()


def test_a_printed_structure_is_drawn_and_written_as_a_plan(tmp_path: Path) -> None:
    row = "{heads: 1, hidden: 20, rates: [0.5, null]}"
    path = write_small(tmp_path, ABLATION + f"  - {{name: printed, structure: [{row}, {{heads: 0, hidden: 128}}]}}\n")
    assert main(["ablate", str(path), "--out", str(tmp_path / "out"), "--table"]) == 0
    stem = tmp_path / "out" / "tables" / "small-table-own-structure-5"
    assert "20 of 128 hidden" in stem.with_suffix(".svg").read_text()
    plan = parse_plan(stem.with_suffix(".plan.json").read_text(), "the plan")
    assert plan.drops == ("blocks.1.attn",)
    assert plan.keep("blocks.0.mlp:hidden") == tuple(range(20))


def test_a_mistake_of_one_run_does_not_stop_the_others_but_the_same_twice_does(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from usdcore.errors import BudgetMissed, UsdcoreError

    path, out = write_small(tmp_path, ABLATION.replace("epochs: 2}\n  - {name: search", "x")), tmp_path / "out"
    (tmp_path / "base.yaml").write_text(
        (tmp_path / "base.yaml").read_text().replace("  - {name: dense, epochs: 2}\n", "")
    )
    tried: list[str] = []

    def fails(recipe: Path, folder: Path) -> None:
        tried.append(folder.name)
        if words == "missed":
            raise BudgetMissed(f"{folder}: the search came to 1.0")
        raise UsdcoreError(f"{folder}: {words if words != 'own' else folder.name}")

    monkeypatch.setattr("usdcore.ablate.execute.run", fails)
    words = "own"
    assert main(["ablate", str(path), "--out", str(out)]) == 1
    assert len(tried) == 2
    assert "2 runs could not be made" in capsys.readouterr().err
    words = "no data"
    assert main(["ablate", str(path), "--out", str(out), "--scale", "papers"]) == 1
    assert len(tried) == 4
    assert "the same mistake in two runs" in capsys.readouterr().err
    words = "missed"
    assert main(["ablate", str(path), "--out", str(out)]) == 3
    assert "the search came to 1.0" in capsys.readouterr().err
