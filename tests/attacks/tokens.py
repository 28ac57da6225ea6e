"""Attacks by what a plan records about tokens: the places of DynamicViT, the policies of AdaViT, the merges of ToMe."""

from __future__ import annotations

import functools
import json
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

import usdcore
from usdcore.artifact import create, save
from usdcore.hooks import registry
from usdcore.plans import Attach, Base, Plan
from usdcore.surgery import shrink
from usdcore.tensorfile import read_tensors, write_tensors

from .table import Table

BASE = Base(
    name="vit_tiny_patch16_224",
    kwargs={"img_size": 16, "patch_size": 4, "embed_dim": 16, "depth": 2, "num_heads": 2},
    num_classes=3,
    input_shape=(3, 16, 16),
)
PLACE = {"blocks": ["blocks.0"], "before": None, "width": 16, "prefix": 1, "read": 16, "count": 12, "ratio": 0.75}
LATER = PLACE | {"blocks": ["blocks.1"], "before": "blocks.0", "read": 12, "count": 8, "ratio": 0.5}
MERGE = {"r": 3, "tokens": 17, "prefix": 1, "width": 8, "after": "blocks.0.attn", "proportional": True}
TIE = {"site": "blocks.1.mlp:head_columns", "places": [0, 1], "each": 8}
HEADS = {"sites": ["blocks.1.attn:heads", "blocks.1.mlp:head_columns"], "count": 2, "ties": [TIE]}
POLICY = {
    "branches": ["blocks.1.attn", "blocks.1.mlp"],
    "layers": ["blocks.1.attn", "blocks.1.mlp"],
    "heads": [HEADS],
    "tokens": True,
    "prefix": 1,
    "patches": 16,
    "width": 16,
    "edge": 0.0,
    "token_edge": 0.0,
}
MERGES = "blocks.0.mlp:tokens"
RECORDS = {
    "dynamicvit": [("blocks.0", PLACE), ("blocks.1", LATER)],
    "tome": [(MERGES, MERGE)],
    "adavit": [("blocks.1", POLICY)],
}
DEEPEST = "a block that there is not"


def attach(plugin: str, site: str, config: dict[str, Any]) -> Attach:
    return Attach(site=site, plugin=plugin, distribution="usdcore", version="1", config=config)


@functools.cache
def model_bytes(plugin: str) -> bytes:
    """A model with the gates of one strategy, as it lies on the disk."""
    registry().load("strategy", plugin)
    torch.manual_seed(0)
    plan = Plan(base=BASE, records=tuple(attach(plugin, *record) for record in RECORDS[plugin]))
    with tempfile.TemporaryDirectory() as folder:
        save(shrink(create(BASE), plan), plan, Path(folder) / "m.safetensors")
        return (Path(folder) / "m.safetensors").read_bytes()


def changed(plugin: str, change: Callable[[list[Any]], object] = lambda records: None) -> Callable[[Path], None]:
    """Load a model whose records were changed, under right checksums, and run it."""

    def act(place: Path) -> None:
        path = place / "m.safetensors"
        path.write_bytes(model_bytes(plugin))
        header, tensors = read_tensors(path, "model")
        stated = json.loads(header.text)
        change(stated["records"])
        write_tensors(path, "model", json.dumps(stated), tensors)
        with torch.no_grad():
            usdcore.load(path)(torch.zeros(2, *BASE.input_shape))

    return act


def _config(**values: Any) -> Callable[[list[Any]], object]:
    return lambda records: records[-1]["config"].update(values)


def _heads(**values: Any) -> Callable[[list[Any]], object]:
    return lambda records: records[-1]["config"]["heads"][0].update(values)


def _tie(**values: Any) -> Callable[[list[Any]], object]:
    return lambda records: records[-1]["config"]["heads"][0]["ties"][0].update(values)


def _site(site: str) -> Callable[[list[Any]], object]:
    return lambda records: records[-1].update(site=site)


def _also(plugin: str, site: str, config: dict[str, Any]) -> Callable[[list[Any]], object]:
    return lambda records: records.append(json.loads(attach(plugin, site, config).model_dump_json()))


def _added(*changes: Callable[[list[Any]], object]) -> Callable[[list[Any]], object]:
    return lambda records: [change(records) for change in changes]


NAN = float("nan")
PLACES: dict[str, Callable[[list[Any]], object]] = {
    DEEPEST: _config(blocks=["blocks.7"]),
    "a branch for a block": _config(blocks=["blocks.1.attn"]),
    "a block before its own": _config(blocks=["blocks.1", "blocks.0"]),
    "one block 1000 times": _config(blocks=["blocks.1"] * 1000),
    "a place before itself": _config(before="blocks.1"),
    "a million tokens kept of 12": _config(count=10**6),
    "no token kept": _config(count=0),
    "more tokens that always stay than there are": _config(prefix=64),
    "a predictor of another width, its weights as before": _config(width=17),
    "a predictor of 100,000 by 100,000": _config(width=10**5),
    "a share of NaN": _config(ratio=NAN),
    "another place": _site("blocks.5"),
    "tokens merged by another strategy in the same model": _also("tome", MERGES, MERGE),
}
MERGING: dict[str, Callable[[list[Any]], object]] = {
    "more merged than half": _config(r=9),
    "a million merged": _config(r=10**6),
    "more tokens that are never merged than there are": _config(prefix=10**6),
    DEEPEST: _site("blocks.9.mlp:tokens"),
    "a branch, not its tokens": _site("blocks.0.mlp"),
    "hidden neurons for tokens": _site("blocks.0.mlp:hidden"),
    "merged where the attention before had other tokens": _added(
        _also("tome", "blocks.1:tokens", MERGE), _also("tome", "blocks.0:tokens", MERGE)
    ),
    "tokens dropped by another strategy in the same model": _also("adavit", "blocks.1", POLICY),
}
POLICIES: dict[str, Callable[[list[Any]], object]] = {
    "a head's place out of range": _tie(places=[0, 2]),
    "two heads at one place": _tie(places=[0, 0]),
    "fewer places than heads": _tie(places=[0]),
    "columns of 65,536 for each head": _tie(each=65_536),
    "columns of an attention": _tie(site="blocks.1.attn:head_columns"),
    "columns that bear the name of the hidden neurons": _added(
        _tie(site="blocks.1.mlp:hidden"), _heads(sites=["blocks.1.attn:heads", "blocks.1.mlp:hidden"])
    ),
    "three decisions for two heads": _heads(count=3),
    "decisions about heads given to a branch": _heads(sites=["blocks.1.mlp"], ties=[]),
    "decisions about heads given to hidden neurons": _heads(sites=["blocks.1.mlp:hidden"], ties=[]),
    "decisions about heads given to tokens": _added(_heads(sites=["blocks.0:tokens"], ties=[]), _config(prefix=0)),
    "heads of an earlier block": _heads(sites=["blocks.0.attn:heads"], ties=[]),
    "a layer of an earlier block": _config(layers=["blocks.0.attn", "blocks.1.mlp"]),
    "layers that there are not": _config(layers=["x", "blocks.1.mlp"]),
    "more tokens that always stay than there are": _config(prefix=64),
    "another width": _config(width=17),
    "an edge of NaN": _config(edge=NAN),
    "a scope that is not its own": _config(scope="token"),
}

places = Table("Places of DynamicViT that the plan attaches")
merging = Table("Merges of ToMe that the plan attaches")
policies = Table("Policies of AdaViT that the plan attaches")
for table, plugin, changes in (
    (places, "dynamicvit", PLACES),
    (merging, "tome", MERGING),
    (policies, "adavit", POLICIES),
):
    for name, change in changes.items():
        table.add(name, changed(plugin, change))

TABLES = (places, merging, policies)
