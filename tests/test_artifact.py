"""One file, no pickle: it comes back the same for every kind, and a file that is not ours is one clear message."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from test_surgery import ONE, random_plan
from torch import nn
from zoo import SMALL, randomise

import usdcore
from usdcore.artifact import create, save
from usdcore.errors import UsdcoreError
from usdcore.gates import Draw, ForwardState, Gate
from usdcore.hooks import Register, build_registry, hookimpl, installed, using
from usdcore.plans import Attach, Base, Plan
from usdcore.recipe import PluginConfig
from usdcore.strategy import Strategy
from usdcore.surgery import shrink
from usdcore.tensorfile import read_tensors, write_tensors

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
    """The same weights with another plan, and right checksums."""
    header, tensors = read_tensors(saved, "model")
    plan = json.loads(header.text)
    change(plan)
    write_tensors(saved, "model", json.dumps(plan), tensors)
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
        (lambda p: p.update(format=9), "its plan is of format 9"),
        (
            lambda p: p["records"].append({"record": "keep", "group": "blocks.0.attn:heads", "indices": [9**9]}),
            "range|left",
        ),
    ],
)
def test_a_plan_that_lies(saved: Path, change: Any, message: str) -> None:
    with pytest.raises(UsdcoreError, match=message):
        usdcore.load(with_plan(saved, change))


def test_weights_of_another_type_come_back_as_they_are(tmp_path: Path) -> None:
    model = create(base_of("vit")).double()
    save(model, Plan(base=base_of("vit")), tmp_path / "m.safetensors")
    again = usdcore.load(tmp_path / "m.safetensors")
    assert all(torch.equal(a, b) for a, b in zip(again.parameters(), model.parameters(), strict=True))
    model.norm.half()
    with pytest.raises(UsdcoreError, match=r"weights of torch.float16 and torch.float64 in one model; convert"):
        save(model, Plan(base=base_of("vit")), tmp_path / "m.safetensors")


def test_a_model_that_computes_tables_of_its_own(tmp_path: Path) -> None:
    """What is no weight is not in the file: such a model is built anew before it is filled."""
    base = Base(name="eva02_tiny_patch14_224", kwargs={"depth": 1}, num_classes=3, input_shape=(3, 224, 224))
    model = create(base).eval()
    assert set(dict(model.named_buffers())) - set(model.state_dict())
    save(model, Plan(base=base), tmp_path / "m.safetensors")
    images = torch.randn(1, 3, 224, 224)
    with torch.no_grad():
        assert torch.equal(usdcore.load(tmp_path / "m.safetensors")(images), model(images))


def test_loading_draws_no_random_numbers(saved: Path) -> None:
    before = torch.get_rng_state()
    usdcore.load(saved)
    assert torch.equal(torch.get_rng_state(), before)


class PeekConfig(PluginConfig):
    """Options of `peek`."""


class PeekGate(Gate):
    """Decides by a value, so it can't be tried without one."""

    def __init__(self, record: Attach) -> None:
        super().__init__()
        self.sites, self.tap, self.scope = (f"{record.site}.mlp",), record.site, "batch"
        self.weight = nn.Parameter(torch.ones(record.config["width"]))

    def draw(self, x_BNC: torch.Tensor | None, state: ForwardState) -> dict[str, Draw]:
        assert x_BNC is not None
        return {self.sites[0]: Draw(torch.tensor(1.0 if (x_BNC.mean((0, 1)) @ self.weight).item() > -9 else 0.0))}


class Peek(Strategy):
    @classmethod
    def rebuild(cls, record: Attach) -> Gate:
        return PeekGate(record)


class Plugin:
    @hookimpl
    def usdcore_register(self, register: Register) -> None:
        register.strategy(name="peek", config=PeekConfig, implementation=f"{__name__}:Peek", summary="looks at values")


@pytest.mark.parametrize("width", [48, 47])
def test_a_strangers_gate_that_looks_at_values(tmp_path: Path, width: int) -> None:
    record = Attach(site="blocks.1", plugin="peek", distribution="peek", version="1", config={"width": width})
    plan = Plan(base=base_of("vit"), records=(record,))
    with using(build_registry(Plugin(), candidates=installed())):
        model = shrink(create(base_of("vit")), plan).eval()
        save(model, plan, tmp_path / "m.safetensors")
        if width == 48:
            images = torch.randn(2, 3, 32, 32)
            assert torch.equal(usdcore.load(tmp_path / "m.safetensors")(images), model(images))
        else:
            with pytest.raises(UsdcoreError, match=r"its gates don't run .*; make the file anew"):
                usdcore.load(tmp_path / "m.safetensors")


def test_other_files(saved: Path, tmp_path: Path) -> None:
    with pytest.raises(UsdcoreError, match="no such file"):
        usdcore.load(tmp_path / "none.safetensors")
    save_file({"a": torch.ones(1)}, tmp_path / "other.safetensors")
    with pytest.raises(UsdcoreError, match="not a model that usdcore wrote"):
        usdcore.load(tmp_path / "other.safetensors")
    saved.write_bytes(saved.read_bytes()[:-100])
    with pytest.raises(UsdcoreError, match="damaged: "):
        usdcore.load(saved)
    torch.save({"a": 1}, tmp_path / "pickle.safetensors")
    with pytest.raises(UsdcoreError, match="damaged: "):
        usdcore.load(tmp_path / "pickle.safetensors")
