"""A small real model file, and ways to forge one: raw headers, and plans under right checksums."""

from __future__ import annotations

import functools
import json
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import usdcore
from usdcore.artifact import create, save
from usdcore.hooks import registry
from usdcore.plans import Attach, Base, Drop, Keep, Plan
from usdcore.surgery import shrink
from usdcore.tensorfile import read_tensors, write_tensors

KWARGS = {"img_size": 16, "patch_size": 8, "embed_dim": 16, "depth": 2, "num_heads": 2}
GATE = {
    "columns": ["blocks.1.attn", "blocks.1.mlp"],
    "width": 16,
    "network": {"use": "G5"},
    "scope": "sample",
    "threshold": 0.0,
}


def gate(**changes: Any) -> Attach:
    stated = {"site": "blocks.1", "plugin": "usdc-dynamic", "distribution": "usdcore", "version": "1", "config": GATE}
    return Attach.model_construct(**stated | changes)


@functools.cache
def plan() -> Plan:
    registry().load("strategy", "usdc-dynamic")  # so that no attack pays for the first import
    base = Base(name="vit_tiny_patch16_224", kwargs=KWARGS, num_classes=3, input_shape=(3, 16, 16))
    static = [Keep(group="blocks.0.attn:heads", indices=(1,)), Keep(group="blocks.1.mlp:hidden", indices=(0, 5, 9))]
    return Plan(base=base, records=(*static, Drop(branch="blocks.0.mlp"), gate()))


@functools.cache
def model_bytes() -> bytes:
    """A compressed model with gates, as it lies on the disk."""
    torch.manual_seed(0)
    stated = plan()
    assert stated.base is not None
    with tempfile.TemporaryDirectory() as folder:
        save(shrink(create(stated.base), stated), stated, Path(folder) / "m.safetensors")
        return (Path(folder) / "m.safetensors").read_bytes()


def model_file(place: Path) -> Path:
    path = place / "m.safetensors"
    path.write_bytes(model_bytes())
    return path


def load(place: Path) -> object:
    return usdcore.load(place / "m.safetensors")


def with_text(text: Callable[[str], str]) -> Callable[[Path], object]:
    """Load a model whose plan's text is another, with right checksums."""

    def act(place: Path) -> object:
        path = model_file(place)
        header, tensors = read_tensors(path, "model")
        write_tensors(path, "model", text(header.text), tensors)
        return load(place)

    return act


def with_plan(change: Callable[[dict[str, Any]], object]) -> Callable[[Path], object]:
    """Load a model whose plan was changed, with right checksums."""

    def text(before: str) -> str:
        stated = json.loads(before)
        change(stated)
        return json.dumps(stated)

    return with_text(text)


def with_kwargs(**kwargs: Any) -> Callable[[Path], object]:
    return with_plan(lambda stated: stated["base"]["kwargs"].update(kwargs))


def with_gate(**changes: Any) -> Callable[[Path], object]:
    return with_plan(lambda stated: stated["records"][-1]["config"].update(changes))


def with_tensors(change: Callable[[dict[str, Tensor]], object]) -> Callable[[Path], object]:
    """Load a model with other tensors, with right checksums."""

    def act(place: Path) -> object:
        path = model_file(place)
        header, tensors = read_tensors(path, "model")
        change(tensors)
        write_tensors(path, "model", header.text, tensors)
        return load(place)

    return act


def raw(header: object, data: bytes = b"") -> bytes:
    """A safetensors file with this header; text is taken as it is."""
    text = header if isinstance(header, str) else json.dumps(header)
    return len(text.encode()).to_bytes(8, "little") + text.encode() + data


def with_header(change: Callable[[dict[str, Any]], object]) -> Callable[[Path], object]:
    """Load a model whose header was changed, its checksums left as they were."""

    def act(place: Path) -> object:
        content = model_bytes()
        end = 8 + int.from_bytes(content[:8], "little")
        header = json.loads(content[8:end])
        change(header)
        (place / "m.safetensors").write_bytes(raw(header, content[end:]))
        return load(place)

    return act


def with_bytes(change: Callable[[bytes], bytes]) -> Callable[[Path], object]:
    def act(place: Path) -> object:
        (place / "m.safetensors").write_bytes(change(model_bytes()))
        return load(place)

    return act


def flipped(content: bytes, bit: int) -> bytes:
    """The same with one bit the other way round."""
    found = bytearray(content)
    found[bit // 8] ^= 1 << bit % 8
    return bytes(found)


def first_tensor(header: Mapping[str, Any]) -> str:
    return next(name for name in header if name != "__metadata__")
