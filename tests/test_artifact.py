"""One file, no pickle: it comes back the same for every kind, and a file that is not ours is one clear message."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from test_surgery import ONE, random_plan
from zoo import SMALL, randomise

import usdcore
from usdcore.artifact import create, save
from usdcore.errors import UsdcoreError
from usdcore.plans import Base, Plan
from usdcore.surgery import shrink

KWARGS: dict[str, tuple[str, dict[str, Any]]] = {
    "vit": ("vit_tiny_patch16_224", {}),
    "deit": ("deit_tiny_patch16_224", {}),
    "distilled": ("deit_tiny_distilled_patch16_224", {}),
    "layer_scale": ("deit3_small_patch16_224", {}),
    "qk_norm": ("vit_tiny_patch16_224", {"qk_norm": True}),
    "swiglu": ("vit_tiny_patch16_224", {"mlp_layer": "timm.layers:SwiGLUPacked"}),
}


def base_of(kind: str) -> Base:
    name, extra = KWARGS[kind]
    kwargs = {key: value for key, value in SMALL.items() if key != "num_classes"} | extra
    return Base(name=name, kwargs=kwargs, num_classes=7, input_shape=(3, 32, 32))


@pytest.mark.parametrize("kind", list(KWARGS))
def test_round_trip(kind: str, images: torch.Tensor, tmp_path: Path) -> None:
    base = base_of(kind)
    model = randomise(create(base)).eval()
    plan = Plan(base=base, records=random_plan(model, 4).records)
    small = shrink(model, plan)
    save(small, plan, tmp_path / "m.safetensors")
    again = usdcore.load(tmp_path / "m.safetensors")
    with torch.no_grad():
        assert torch.equal(again(images), small(images))
    assert not again.training
    assert list(tmp_path.iterdir()) == [tmp_path / "m.safetensors"]


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    base = base_of("vit")
    model = create(base)
    plan = Plan(base=base, records=random_plan(model, 4).records)
    save(shrink(model, plan, ONE), plan, tmp_path / "m.safetensors")
    return tmp_path / "m.safetensors"


def with_plan(saved: Path, change: Any) -> Path:
    with safe_open(saved, framework="pt") as file:
        plan = json.loads(file.metadata()["usdcore.plan"])
    change(plan)
    save_file(load_file(saved), saved, metadata={"usdcore.plan": json.dumps(plan)})
    return saved


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda p: p["base"].update(name="../x"), "not a plan of format 1: base.name"),
        (lambda p: p["base"].update(name="vit_tinny_patch16_224"), "did you mean 'vit_tiny_patch16_224'"),
        (lambda p: p["base"]["kwargs"].update(checkpoint_path="x.pth"), "checkpoint_path would load something else"),
        (lambda p: p["base"]["kwargs"].update(mlp_layer="timm.layers:os"), "timm.layers has no class 'os'"),
        (lambda p: p["base"]["kwargs"].update(depth=2), "does not have"),
        (lambda p: p.update(records=[]), "its weights do not fit its plan"),
        (lambda p: p.update(base=None), "names no base model"),
        (lambda p: p.update(format=9), "not a plan of format 1: format"),
        (
            lambda p: p["records"].append({"record": "keep", "group": "blocks.0.attn:heads", "indices": [9**9]}),
            "range|left",
        ),
    ],
)
def test_a_plan_that_lies(saved: Path, change: Any, message: str) -> None:
    with pytest.raises(UsdcoreError, match=message):
        usdcore.load(with_plan(saved, change))


def test_other_files(saved: Path, tmp_path: Path) -> None:
    with pytest.raises(UsdcoreError, match="no such file"):
        usdcore.load(tmp_path / "none.safetensors")
    save_file({"a": torch.ones(1)}, tmp_path / "other.safetensors")
    with pytest.raises(UsdcoreError, match="no plan in its header"):
        usdcore.load(tmp_path / "other.safetensors")
    saved.write_bytes(saved.read_bytes()[:-100])
    with pytest.raises(UsdcoreError, match="not a safetensors file, or a damaged one"):
        usdcore.load(saved)
    torch.save({"a": 1}, tmp_path / "pickle.safetensors")
    with pytest.raises(UsdcoreError, match="not a safetensors file, or a damaged one"):
        usdcore.load(tmp_path / "pickle.safetensors")
