"""`usdcore bench` from outside: which models, what stands beside the numbers, where it is written. No time is judged:
a clock that ticks once a look stands in for the machine's.
"""

from __future__ import annotations

import itertools
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from zoo import INPUT, SMALL

from usdcore.artifact import create, save
from usdcore.bench import causes
from usdcore.bench.measured import Wish, bench
from usdcore.cli import group
from usdcore.costs import cost
from usdcore.errors import UsdcoreError
from usdcore.hooks import registry
from usdcore.latency import Timing
from usdcore.plans import Base, Keep, Plan
from usdcore.runner import gating_of
from usdcore.session import Session
from usdcore.strategy import Budget
from usdcore.surgery import shrink
from usdcore.units import find_units

BASE = Base(name="vit_tiny_patch16_224", kwargs={k: v for k, v in SMALL.items() if k != "num_classes"}, num_classes=7,
            input_shape=INPUT)  # fmt: skip
STATIC = Plan(base=BASE, records=(Keep(group="blocks.1.mlp:hidden", indices=tuple(range(37))),))


def ticking() -> Timing:
    ticks = itertools.count()
    return Timing(rounds=2, threads=1, clock=lambda: float(next(ticks)))


@pytest.fixture
def static(tmp_path: Path) -> Path:
    save(shrink(create(BASE), STATIC), STATIC, tmp_path / "model.safetensors")
    return tmp_path / "model.safetensors"


@pytest.fixture
def gated(tmp_path: Path) -> Path:
    torch.manual_seed(0)
    dense = cost(find_units(create(BASE), torch.zeros(1, *INPUT, device="meta")))
    session = Session(
        shrink(create(BASE), STATIC), torch.zeros(1, *INPUT), Budget("macs", 0.5, batch_size=4), STATIC, dense
    )
    config = registry().config("strategy", "usdc-dynamic")
    options = {"use": "usdc-dynamic", "gate_network": "G1", "init_logit": 0.0}
    session.begin_phase([registry().load("strategy", "usdc-dynamic")(config.model_validate(options))])
    batches = [torch.randn(4, *INPUT) for _ in range(3)]
    session.end_phase(lambda: batches)
    session.calibrate(lambda: batches)
    assert gating_of(session.model) is not None
    save(session.model, session.plan, tmp_path / "gated.safetensors")
    return tmp_path / "gated.safetensors"


def test_a_shrunk_model_stands_beside_the_dense_one(static: Path) -> None:
    found = bench(static, Wish(batch_sizes=(1, 3), timing=ticking()))
    assert [(row["batch_size"], row["model"]) for row in found["rows"]] == [
        (1, "dense"), (1, "shrunk"), (3, "dense"), (3, "shrunk"),
    ]  # fmt: skip
    dense, shrunk = found["rows"][2:]
    with torch.device("meta"):
        small = find_units(shrink(create(BASE), STATIC), torch.zeros(1, *INPUT, device="meta"))
    assert shrunk["macs_ratio"] == small.macs / found["models"]["dense"]["macs"] < 1
    assert shrunk["gap"] == pytest.approx(shrunk["time_ratio"] - shrunk["macs_ratio"])
    assert dense["images_per_second"] == pytest.approx(3e3 / dense["median_ms"])
    assert set(shrunk["parts_ms"]) == set(causes.PARTS)
    assert sum(shrunk["parts_ms"].values()) == pytest.approx(shrunk["median_ms"])
    assert found["conditions"]["threads"] == 1
    assert "noise" in found["conditions"]["images"]
    assert "file" not in found  # nothing is written beside somebody's file


def test_a_skipping_model_is_counted_by_what_it_executed(gated: Path) -> None:
    found = bench(gated, Wish(batch_sizes=(4,), timing=ticking(), scope="sample"))
    dense, shrunk, skipping = found["rows"]
    assert [row["model"] for row in found["rows"]] == ["dense", "shrunk", "skipping"]
    assert skipping["macs_ratio"] < shrunk["macs_ratio"] < dense["macs_ratio"] == 1
    assert skipping["parts_ms"]["gates"] > 0 == shrunk["parts_ms"]["gates"]
    assert found["conditions"]["gates_decide_per"] == ["sample"]


def test_the_result_lies_in_the_runs_folder(static: Path) -> None:
    (static.parent / "recipe.yaml").write_text("damaged: true\n")
    found = bench(static.parent, Wish(batch_sizes=(1,), timing=ticking()))
    assert "recipe's data can't be had" in found["conditions"]["images"]
    written = json.loads((static.parent / "bench.json").read_text())
    assert written["rows"] == found["rows"]
    assert {"date", "machine", "versions", "threads", "images", "allocator"} <= written["conditions"].keys()
    assert not [path for path in static.parent.iterdir() if path.suffix == ".aside"]


def test_the_command_prints_a_table_or_json(static: Path, tmp_path: Path) -> None:
    asked = ["bench", str(static), "--batch-sizes", "2,1", "--rounds", "1", "--threads", "1"]
    printed = CliRunner().invoke(group, [*asked, "--dtype", "bfloat16"], catch_exceptions=False)
    assert printed.exit_code == 0
    assert "shrunk (bfloat16)" in printed.output
    assert "batch 2, shrunk" in printed.output
    found = CliRunner().invoke(group, [*asked, "--json", "--out", str(tmp_path / "b.json")], catch_exceptions=False)
    stated = json.loads(found.stdout)
    assert [row["batch_size"] for row in stated["rows"]] == [1, 1, 2, 2]
    assert (tmp_path / "b.json").is_file()


@pytest.mark.parametrize("given", ["0", "1,x", ""])
def test_batch_sizes_are_numbers(static: Path, given: str) -> None:
    assert CliRunner().invoke(group, ["bench", str(static), "--batch-sizes", given]).exit_code == 2


def test_a_folder_without_a_model_is_said_to_be_one(tmp_path: Path) -> None:
    with pytest.raises(UsdcoreError, match=r"holds no model\.safetensors"):
        bench(tmp_path, Wish())


def test_the_shares_of_a_gap_add_up_to_it() -> None:
    dense = dict(zip(causes.PARTS, (60.0, 30.0, 0.0, 0.0, 10.0), strict=True))
    ours = dict(zip(causes.PARTS, (33.0, 20.0, 2.0, 3.0, 9.0), strict=True))
    shares = causes.gap_of(ours, dense, 0.5)
    assert sum(shares.values()) == pytest.approx(0.67 - 0.5)
    assert shares["gates"] == pytest.approx(0.03)


@pytest.mark.parametrize(
    ("part", "odd", "words"),
    [
        ("products", ["blocks.0.mlp 411"], "odd widths (blocks.0.mlp 411): products are slower per MAC, 9.0 of 10.0"),
        ("products", [], "smaller matrices"),
        ("memory", ["blocks.0.mlp 411"], "memory traffic"),
        ("rows", [], "moving the rows"),
        ("gates", [], "gate networks' own time"),
        ("calls", [], "a batch of 8 does not hide"),
    ],
)
def test_the_largest_share_is_the_cause(part: str, odd: list[str], words: str) -> None:
    shares = dict.fromkeys(causes.PARTS, 0.0025) | {part: 0.09}
    assert words in causes.cause(0.1, shares, 0.02, odd, 8)
    assert causes.cause(0.1, shares, 0.2, odd, 8) == "none beyond noise"
    assert "faster" in causes.cause(-0.1, shares, 0.02, odd, 8)


def test_odd_widths_are_found() -> None:
    plan = Plan(base=BASE, records=(*STATIC.records, Keep(group="blocks.0.mlp:hidden", indices=tuple(range(40)))))
    units = find_units(shrink(create(BASE), plan), torch.zeros(1, *INPUT, device="meta"))
    assert causes.odd_widths(units, torch.float32) == ["blocks.1.mlp 37"]
    assert "blocks.0.mlp 40" in causes.odd_widths(units, torch.bfloat16)


def test_heads_of_unequal_dims_are_odd() -> None:
    kept = np.r_[0:12, 12:20, 24:48]
    plan = Plan(base=BASE, records=(Keep(group="blocks.0.attn:v_dims", indices=tuple(map(int, kept))),))
    units = find_units(shrink(create(BASE), plan), torch.zeros(1, *INPUT, device="meta"))
    assert any(name.startswith("blocks.0.attn") for name in causes.odd_widths(units, torch.float32))


def test_models_without_gates_are_compiled_too(gated: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "compile", lambda model, dynamic: model)
    found = bench(gated, Wish(batch_sizes=(2,), timing=ticking(), compiled=True))
    assert [row["model"] for row in found["rows"] if row["compiled"]] == ["dense", "shrunk"]
    assert ["skipping" in reason for reason in found["failed"]] == [True]


def test_a_compiler_that_fails_leaves_the_rest(static: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(model: torch.nn.Module, dynamic: bool) -> torch.nn.Module:
        raise RuntimeError("no compiler here")

    monkeypatch.setattr(torch, "compile", broken)
    found = bench(static, Wish(batch_sizes=(2,), timing=ticking(), compiled=True))
    assert [row["compiled"] for row in found["rows"]] == [False, False]
    assert "no compiler here" in found["failed"][0]


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_on_cuda_parts_are_of_the_devices_time(gated: Path) -> None:
    wish = Wish(batch_sizes=(8,), timing=Timing(rounds=3, device="cuda"), dtypes=("float32", "bfloat16"))
    found = bench(gated, wish)
    assert {row["dtype"] for row in found["rows"]} == {"float32", "bfloat16"}
    assert all(row["parts_ms"]["products"] > 0 for row in found["rows"])
