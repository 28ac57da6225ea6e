"""`usdcore units` and its JSON."""

from __future__ import annotations

import json

import pytest
import torch
from units.hosts import INPUT, Block, Layers

from usdcore.cli import main
from usdcore.units import find_units
from usdcore.units.show import reasons, units_json


def run(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    code = main(["units", *arguments])
    out = capsys.readouterr()
    return code, out.out, out.err


def test_json_keys() -> None:
    found = json.loads(json.dumps(units_json(find_units(Layers(Block(merge="function")), INPUT), "mine", 8)))
    assert (found["model"], found["input_size"]) == ("mine", 8)
    (attention,), (ffn,), (block,) = found["attention"], found["ffn"], found["blocks"]
    assert [attention[key] for key in ("name", "num_heads", "qk_dim", "v_dim")] == ["layers.0.mix", 4, 6, 6]
    assert ffn["name"] == "layers.0.feed"
    assert ffn["hidden"] == 40
    assert attention["macs"] + ffn["macs"] < found["macs"]
    assert (block["name"], block["units"]) == ("layers.0", ["layers.0.mix", "layers.0.feed"])
    heads, hidden = attention["groups"][0], ffn["groups"][0]
    assert not heads["prunable"]
    assert "a fixed size" in heads["reason"]
    assert hidden["prunable"]
    assert hidden["reason"] is None
    assert [branch["gateable"] for branch in block["branches"]] == [True, True]


def test_a_reason_is_told_once() -> None:
    told = reasons(find_units(Layers(Block(merge="function"), Block(merge="function")), INPUT))
    fixed = [names for reason, names in told if "a fixed size" in reason]
    assert fixed == [["layers.0.mix:heads", "layers.1.mix:heads"]]


def test_command(capsys: pytest.CaptureFixture[str]) -> None:
    small = (
        "--input-size",
        "32",
        "--kwargs",
        "depth=1",
        "--kwargs",
        "scale_attn_norm=true",
        "--kwargs",
        "num_classes=5",
    )
    code, out, _ = run(capsys, "vit_tiny_patch16_224", *small, "--json")
    found = json.loads(out)
    assert code == 0
    assert (found["model"], found["input_size"], len(found["blocks"])) == ("vit_tiny_patch16_224", 32, 1)
    code, out, _ = run(capsys, "vit_tiny_patch16_224", *small)
    assert code == 0
    assert f"{found['macs']:,} MACs" in out
    assert "can't be pruned: its entries are normalised together by layer_norm" in out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("deit_tiny_patch16_225",), "did you mean 'deit_tiny_patch16_224'"),
        (("vit_tiny_patch16_224", "--kwargs", "depth"), "give KEY=VALUE"),
        (("vit_tiny_patch16_224", "--kwargs", "no_such=1"), "no_such"),
    ],
)
def test_mistakes(capsys: pytest.CaptureFixture[str], arguments: tuple[str, ...], message: str) -> None:
    code, _, err = run(capsys, *arguments)
    assert code == 1
    assert message in err
    assert "Traceback" not in err


def test_types_need_no_torch() -> None:
    import subprocess
    import sys

    code = "import sys; import usdcore.units.types, usdcore.cli.units; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)
    assert torch.__name__
