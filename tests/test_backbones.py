"""Models of plugins: named like timm's own, and missed by the name of their package."""

from __future__ import annotations

import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest
import timm
import torch
from test_artifact import base_of
from torch import nn

import usdcore
from usdcore.backbones import backbones, require_model, with_origin
from usdcore.construct import create
from usdcore.errors import UsdcoreError
from usdcore.hooks import Candidate, Register, Registry, build_registry, hookimpl, using
from usdcore.plans import Base, Plan


def plugin(name: str, implementation: str) -> Registry:
    @hookimpl
    def usdcore_register(register: Register) -> None:
        register.backbone(name=name, implementation=implementation, summary="a toy")

    toys = SimpleNamespace(__name__="toys", usdcore_register=usdcore_register)
    return build_registry(candidates=[Candidate("toys", "toy-models", "1.2", lambda: toys)])


@pytest.fixture
def toy(monkeypatch: pytest.MonkeyPatch) -> Registry:
    """A module with a model that timm was told of, unlearned afterwards."""
    from timm.models import _registry as known

    for table in ("_model_entrypoints", "_model_to_module"):
        monkeypatch.setattr(known, table, dict(getattr(known, table)))
    module = ModuleType("toy_models")
    monkeypatch.setitem(sys.modules, "toy_models", module)
    exec(
        "from timm.models import create_model, register_model\n"
        "@register_model\n"
        "def toy_vit(pretrained=False, pretrained_cfg=None, pretrained_cfg_overlay=None, **kwargs):\n"
        "    return create_model('vit_tiny_patch16_224', **kwargs)\n",
        module.__dict__,
    )
    return plugin("toy_vit", "toy_models:toy_vit")


def toy_base() -> Base:
    return base_of("vit").model_copy(update={"name": "toy_vit"})


def test_a_saved_model_names_its_backbones_package(
    toy: Registry, vit: nn.Module, images: torch.Tensor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "m.safetensors"
    with using(toy):
        usdcore.save(vit, Plan(base=toy_base()), path)
        with torch.no_grad():
            torch.testing.assert_close(usdcore.load(path)(images), vit(images))
    monkeypatch.setattr("usdcore.backbones.timm.list_models", lambda: ["resnet50"])
    missing = "needs the backbone 'toy_vit' of the package toy-models 1.2, which is not installed .* pip install toy-mo"
    with using(build_registry()), pytest.raises(UsdcoreError, match=f"m.safetensors: .*{missing}"):
        usdcore.load(path)


def test_timms_own_models_have_no_package() -> None:
    assert with_origin(base_of("vit")) == base_of("vit")


def test_a_backbone_that_fails_breaks_no_other_model() -> None:
    with using(plugin("toy_vit", "no_such_module:toy_vit")):
        assert list(backbones()) == ["toy_vit"]
        require_model("vit_tiny_patch16_224")
        with pytest.raises(UsdcoreError, match=r"'toy_vit' can't be loaded: .* reinstall toy-models 1.2"):
            require_model("toy_vit")


@pytest.mark.parametrize("name", ["toy_vit", "resnet50"])
def test_a_backbone_is_what_timm_builds(name: str) -> None:
    """Neither a function that timm was never given, nor one in the place of timm's own."""
    with using(plugin(name, "collections:OrderedDict")), pytest.raises(UsdcoreError, match="is not what timm builds"):
        require_model(name)


def test_an_unknown_model_names_plugins_that_failed() -> None:
    def load() -> object:
        raise ImportError("no x")

    broken = build_registry(candidates=[Candidate("toys", "toy-models", "1.2", load)])
    base = Base(name="vit_tinny_patch16_224", num_classes=2, input_shape=(3, 8, 8))
    with using(broken), pytest.raises(UsdcoreError, match=r"did you mean 'vit_tiny_.*toys of toy-models \(ImportErr"):
        create(base)
    assert "toy_vit" not in timm.list_models()
