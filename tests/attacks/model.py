"""Attacks on a model file: its bytes, its header, its plan, the base that the plan names, its gates."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import torch
from timm.layers import is_scriptable

import usdcore
from usdcore.engine.checkpoint import write_state
from usdcore.tensorfile import read_header, read_tensors, write_tensors

from . import made
from .table import Table

TEN_MILLION = 10_000_000

file = Table("A model file's bytes")
header = Table("A model file's header")
plan = Table("The plan in it")
base = Table("The base model that the plan names")
gates = Table("The gates that the plan attaches")


def _size(content: bytes) -> int:
    return 8 + int.from_bytes(content[:8], "little")


file.add("a bit flipped in the weights", made.with_bytes(lambda b: made.flipped(b, 8 * (len(b) - 99))))
file.add(
    "a bit flipped in a number of the plan",
    made.with_bytes(lambda b: b.replace(b'\\"indices\\":[0,5,9]', b'\\"indices\\":[0,5,8]')),
)
file.add("cut off in the weights", made.with_bytes(lambda b: b[:-100]))
file.add("cut off in the header", made.with_bytes(lambda b: b[:200]))
file.add("more bytes after its end", made.with_bytes(lambda b: b + b"\0" * 64))
file.add("empty", made.with_bytes(lambda b: b""))
file.add("nothing but zeros", made.with_bytes(lambda b: bytes(len(b))))


@file("a pickle under its name")
def _pickle(place: Path) -> None:
    torch.save({"a": 1}, place / "m.safetensors")
    made.load(place)


@file("a pipe under its name, on which reading would wait for ever")
def _pipe(place: Path) -> None:
    os.mkfifo(place / "m.safetensors")
    made.load(place)


@file("a checkpoint of a run under its name")
def _kind(place: Path) -> None:
    write_state({"a": torch.ones(1)}, place / "m.safetensors")
    made.load(place)


def _version(version: str) -> Any:
    def act(place: Path) -> None:
        from usdcore import tensorfile

        path, before = made.model_file(place), tensorfile.FORMAT
        found, tensors = read_tensors(path, "model")
        tensorfile.FORMAT = int(version)  # type: ignore[misc]
        try:
            write_tensors(path, "model", found.text, tensors)
        finally:
            tensorfile.FORMAT = before  # type: ignore[misc]
        made.load(place)

    return act


@file("an older format, without checksums")
def _oldest(place: Path) -> None:
    text = read_header(made.model_file(place), "model").text
    (place / "m.safetensors").write_bytes(made.raw({"__metadata__": {"usdcore.plan": text}}))
    made.load(place)


file.add("a format that is newer than usdcore", _version("3"))


@header("claims 2 GB, in a small file")
def _claims(place: Path) -> None:
    (place / "m.safetensors").write_bytes((2**31).to_bytes(8, "little") + b"{}" * 10)
    made.load(place)


@header("claims 2 GB, in a sparse file of 3 GB")
def _sparse(place: Path) -> None:
    (place / "m.safetensors").write_bytes((2**31).to_bytes(8, "little") + b"{}")
    os.truncate(place / "m.safetensors", 3 * 2**30)
    made.load(place)


def _raw(*parts: Any) -> Any:
    def act(place: Path) -> None:
        (place / "m.safetensors").write_bytes(made.raw(*parts))
        made.load(place)

    return act


header.add("16 MB of opening brackets", _raw("[" * (2**24 - 1)))
header.add("16 MB of empty lists", _raw('{"a":[' + "[]," * 5_000_000 + "[]]}"))
header.add("no mapping", _raw([1, 2]))
header.add("a key twice", _raw('{"__metadata__": {}, "__metadata__": {"usdcore.kind": "model"}}'))
header.add("metadata that are no texts", made.with_header(lambda h: h["__metadata__"].update({"usdcore.plan": 3})))


def _tensor(**changes: Any) -> Any:
    return made.with_header(lambda h: h[made.first_tensor(h)].update(changes))


header.add("a tensor that lies outside the file", _tensor(data_offsets=[10**9, 10**9 + 192]))
header.add("tensors that overlap", made.with_header(lambda h: h["cls_token"].update(h["norm.bias"])))
header.add("a hole between tensors", made.with_header(lambda h: h.pop("norm.bias")))
header.add("a tensor of negative length", _tensor(data_offsets=[192, 0]))
header.add("a type that does not fit the size", _tensor(dtype="BF16"))
header.add("a type that there is not", _tensor(dtype="O"))
header.add("a negative shape", _tensor(shape=[-1, 16]))
header.add("a shape of 10^30 elements", _tensor(shape=[10**10] * 3))
header.add("a shape of no numbers", _tensor(shape=["16", True]))
header.add(
    "a tensor of float64 among float32", made.with_tensors(lambda t: t.update({"norm.bias": torch.ones(16).double()}))
)
header.add("whole numbers for weights", made.with_tensors(lambda t: t.update({"norm.bias": torch.ones(16).long()})))
header.add("a tensor too few", made.with_tensors(lambda t: t.pop("norm.bias")))
header.add("a tensor too many", made.with_tensors(lambda t: t.update({"more": torch.ones(1)})))
header.add("a tensor of another shape", made.with_tensors(lambda t: t.update({"norm.bias": torch.ones(17)})))

plan.add("not JSON", made.with_text(lambda _: "plan"))
plan.add("a list instead of a plan", made.with_text(lambda _: "[]"))
plan.add("a key twice", made.with_text(lambda text: text.replace('"format":1', '"format":1,"format":1')))
plan.add("NaN", made.with_gate(threshold=float("nan")))
plan.add("infinity", made.with_gate(threshold=float("inf")))
plan.add("1e999, which reads as infinity", made.with_text(lambda t: t.replace('"threshold":0.0', '"threshold":1e999')))
plan.add("a number of 5000 digits", made.with_text(lambda t: t.replace('"indices":[1]', f'"indices":[{"9" * 5000}]')))
plan.add(
    "nested 100,000 deep", made.with_text(lambda t: t.replace('"threshold":0.0', '"x":' + "[" * 10**5 + "]" * 10**5))
)
plan.add("nested 500 deep", made.with_text(lambda t: t.replace('"threshold":0.0', '"x":' + "[" * 500 + "]" * 500)))
plan.add("a format that is newer than usdcore", made.with_plan(lambda p: p.update(format=2)))
plan.add("an unknown kind of record", made.with_plan(lambda p: p["records"].append({"record": "run", "code": "1"})))
plan.add("20,000 records", made.with_plan(lambda p: p.update(records=[{"record": "drop", "branch": "b"}] * 20_000)))


def _keep(**record: Any) -> Any:
    stated = {"record": "keep", "group": "blocks.0.mlp:hidden", "indices": [0]} | record
    return made.with_plan(lambda p: p.update(records=[stated]))


plan.add("an index out of range", _keep(indices=[0, 64]))
plan.add("a negative index", _keep(indices=[-1, 0]))
plan.add("indices out of order", _keep(indices=[3, 1]))
plan.add("an index twice", _keep(indices=[1, 1]))
plan.add("900,000 indices", _keep(indices=list(range(900_000))))
plan.add("no index", _keep(indices=[]))


@plan("10 million indices")
def _many(place: Path) -> None:
    text = '{"records":[{"record":"keep","group":"g","indices":[' + "7," * TEN_MILLION + "7"
    (place / "m.safetensors").write_bytes(made.raw({"__metadata__": {"usdcore.plan": text + "]}]}"}}))
    made.load(place)


plan.add("a group that the model does not have", _keep(group="blocks.7.mlp:hidden"))
plan.add("a group that can't be pruned", _keep(group="blocks.0.attn:qk_dims", indices=[0, 1, 2]))
plan.add(
    "a branch that the model does not have", made.with_plan(lambda p: p["records"][2].update(branch="blocks.0.mlpp"))
)
plan.add("a name of a million letters", _keep(group="g" * 10**6))


@plan("codes in a name that a terminal would obey")
def _escapes(place: Path) -> None:
    _keep(group="blocks\x1b[2J\x1b]0;gone\x07")(place)  # whoever tries it looks at the message


for name in ("hf-hub:stranger/model", "local-dir:/tmp/model", "../../model", "vit_tiny_patch16_224.augreg_in21k", "os"):
    base.add(f"the name `{name}`", made.with_plan(lambda p, name=name: p["base"].update(name=name)))
LOADING: dict[str, Any] = {
    "pretrained": True,
    "checkpoint_path": "weights.pth",
    "pretrained_cfg": {"url": "http://stranger/x.pth"},
    "pretrained_cfg_overlay": {"file": "weights.pth"},
    "pretrained_filter_fn": "os:system",
    "pretrained_strict": False,
    "cache_dir": "/tmp",
    "features_only": True,
    "out_indices": [0],
    "kwargs_filter": ["depth"],
    "model_cfg": {},
    "pruned": True,
    "scriptable": True,
    "device": "cuda",
}
for key, value in LOADING.items():
    base.add(f"the argument `{key}`", made.with_kwargs(**{key: value}))
base.add("an argument whose name is no name", made.with_plan(lambda p: p["base"]["kwargs"].update({"a b": 1})))
base.add("a function's import path as a layer, `os:system`", made.with_kwargs(act_layer="os:system"))
base.add("a module as a layer, `timm.layers:os`", made.with_kwargs(mlp_layer="timm.layers:os"))
base.add("a path as a layer", made.with_kwargs(norm_layer="../../layer"))
base.add("a layer that does not fit", made.with_kwargs(norm_layer="timm.layers:PatchEmbed"))
base.add("an argument of the wrong type", made.with_kwargs(depth="many"))
base.add("an argument nested 20 deep", made.with_kwargs(patch_size=[[[[[[[[8]]]]]]]]))


@base("a class that changes timm's settings as a layer, `timm.layers:set_scriptable`")
def _settings(place: Path) -> None:
    try:
        made.with_kwargs(norm_layer="timm.layers:set_scriptable")(place)
    finally:
        assert not is_scriptable()


base.add("10^9 layers", made.with_kwargs(depth=10**9))
base.add("60,000 layers", made.with_kwargs(depth=60_000))
base.add("100 layers, for a file of 2", made.with_kwargs(depth=100))
base.add("a width of 65,000", made.with_kwargs(embed_dim=65_000))
base.add("hidden layers 60,000 times the width", made.with_kwargs(mlp_ratio=60_000.0))
base.add("60,000 tokens", made.with_kwargs(reg_tokens=60_000))
base.add("ten million classes", made.with_plan(lambda p: p["base"].update(num_classes=TEN_MILLION)))
base.add("images of 60,000 pixels a side", made.with_plan(lambda p: p["base"].update(input_shape=[3, 60_000, 60_000])))
base.add(
    "images of 60,000 pixels, one a token",
    made.with_plan(
        lambda p: (
            p["base"].update(input_shape=[3, 60_000, 60_000]),
            p["base"]["kwargs"].update(img_size=60_000, patch_size=1, pos_embed="none"),
        )
    ),
)
base.add("another family than the weights'", made.with_plan(lambda p: p["base"].update(name="resnet50", kwargs={})))


def _attach(**changes: Any) -> Any:
    return made.with_plan(lambda p: p["records"][-1].update(changes))


gates.add("a module's path as the plugin, `os:system`", _attach(plugin="os:system"))
gates.add("a class's path as the plugin", _attach(plugin="usdcore_usdc.dynamic:Dynamic"))
gates.add("a plugin that is not installed", _attach(plugin="sparse-x", distribution="usdcore-sparse-x"))
gates.add("a distribution that is a command, `x; rm -rf ~`", _attach(plugin="x", distribution="x; rm -rf ~"))
gates.add("a distribution that is an option of pip", _attach(plugin="x", distribution="--index-url=http://x"))
gates.add("a strategy that has no gates", _attach(plugin="usdc-static"))
gates.add("a gate network that there is not", made.with_gate(network={"use": "os:system"}))
gates.add("an option that the network does not have", made.with_gate(network={"use": "G5", "path": "x"}))
gates.add(
    "a network of a million by eight million", made.with_gate(width=10**6, network={"use": "G5", "hidden_ratio": 8})
)
gates.add("a convolution of 10^9 taps", made.with_gate(network={"use": "G3", "kernel": 10**9 + 1}))


@gates("a width that is not the block's, with weights to match")
def _width(place: Path) -> None:
    path = made.model_file(place)
    found, tensors = read_tensors(path, "model")
    name = next(name for name in tensors if name.endswith("hidden.weight"))
    tensors[name] = torch.ones(len(tensors[name]), 20)
    write_tensors(path, "model", found.text.replace('"width":16', '"width":20'), tensors)
    made.load(place)


@gates("a block that there is not, with weights to match")
def _block(place: Path) -> None:
    path = made.model_file(place)
    found, tensors = read_tensors(path, "model")
    moved = {name.replace("@blocks/1", "@blocks/9"): tensor for name, tensor in tensors.items()}
    write_tensors(path, "model", found.text.replace('"site":"blocks.1"', '"site":"blocks.9"'), moved)
    made.load(place)


gates.add("a threshold that is no number", made.with_gate(threshold="high"))
gates.add("a scope that there is not", made.with_gate(scope="world"))
gates.add("a branch of another block", made.with_gate(columns=["blocks.0.attn", "blocks.1.mlp"]))
gates.add("a branch that was dropped", made.with_gate(columns=["blocks.0.mlp", "blocks.1.mlp"]))
gates.add("gates that were taken off the plan", made.with_plan(lambda p: p["records"].pop()))

TABLES = (file, header, plan, base, gates)


def loads(place: Path) -> object:
    """The file that every attack starts from is a good one."""
    return usdcore.load(made.model_file(place))
