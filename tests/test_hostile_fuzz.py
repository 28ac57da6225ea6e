"""Random damage, and random values under right checksums: a file is read as it was written, or refused in words.

300 cases of each kind of damage; USDCORE_FUZZ=10 tries ten times as many, other ones each time.
"""

from __future__ import annotations

import contextlib
import copy
import functools
import json
import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from attacks import made, run, tokens
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from usdcore.artifact import load_with_plan
from usdcore.engine.checkpoint import read_state, write_state
from usdcore.engine.weights import read_weights
from usdcore.errors import UsdcoreError
from usdcore.plans import parse_plan
from usdcore.report.page import write_report
from usdcore.tensorfile import read_tensors, write_tensors

MORE = int(os.environ.get("USDCORE_FUZZ", "0"))


def cases(count: int) -> Callable[[Any], Any]:
    checks = [HealthCheck.function_scoped_fixture, HealthCheck.too_slow, HealthCheck.filter_too_much]
    return settings(
        max_examples=count * max(MORE, 1),
        deadline=None,
        derandomize=not MORE,
        database=None,
        suppress_health_check=checks,
    )


@functools.cache
def state_bytes() -> bytes:
    """A checkpoint of a real optimizer."""
    torch.manual_seed(0)
    layer = torch.nn.Linear(9, 5)
    optimizer = torch.optim.AdamW(layer.parameters())
    layer(torch.randn(2, 9)).sum().backward()
    optimizer.step()
    state = {"model": layer.state_dict(), "optimizer": optimizer.state_dict(), "facts": {"phases": [1.5, None, "a"]}}
    with tempfile.TemporaryDirectory() as folder:
        write_state(state, Path(folder) / "c.safetensors")
        return (Path(folder) / "c.safetensors").read_bytes()


@functools.cache
def torch_bytes(suffix: str) -> bytes:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / f"w{suffix}"
        state = {"a": torch.arange(40.0), "b": torch.ones(3, 3)}
        if suffix == ".pth":
            torch.save(state, path)
        else:
            from safetensors.torch import save_file

            save_file(state, path)
        return path.read_bytes()


@st.composite
def damaged(draw: st.DrawFn, content: Callable[[], bytes]) -> bytes:
    """Bits flipped, bytes set, pieces cut out, doubled, put in, at one to three places; or the end cut off."""
    found = bytearray(content())
    head = int.from_bytes(found[:8], "little") % len(found)
    for _ in range(draw(st.integers(1, 3))):
        at = draw(st.integers(0, max(min(head, len(found)) - 1, 0)) | st.integers(0, max(len(found) - 1, 0)))
        kind = draw(st.sampled_from(("flip", "set", "cut", "double", "insert", "end")))
        length = draw(st.integers(1, 64))
        if kind == "flip" and found:
            found[at] ^= 1 << draw(st.integers(0, 7))
        elif kind == "set" and found:
            found[at] = draw(st.integers(0, 255))
        elif kind == "cut":
            del found[at : at + length]
        elif kind == "double":
            found[at:at] = found[at : at + length]
        elif kind == "insert":
            found[at:at] = draw(st.binary(min_size=1, max_size=16))
        else:
            del found[at:]
    return bytes(found)


def same(a: Any, b: Any) -> bool:
    """Equal trees, tensors included."""
    if isinstance(a, torch.Tensor):
        return isinstance(b, torch.Tensor) and a.dtype == b.dtype and torch.equal(a, b)
    if isinstance(a, dict):
        return isinstance(b, dict) and list(a) == list(b) and all(same(a[key], b[key]) for key in a)
    if isinstance(a, list | tuple):
        return type(a) is type(b) and len(a) == len(b) and all(map(same, a, b))
    return type(a) is type(b) and a == b


def attempt(act: Callable[[], Any], place: Path) -> Any:
    """What it gives, or None where it is refused; the refusal names the place, and no terminal obeys it."""
    try:
        return act()
    except UsdcoreError as error:
        text = str(error)
    assert str(place) in text
    assert "\x1b" not in text
    return None


@cases(300)
@given(content=damaged(made.model_bytes))
def test_a_damaged_model_is_refused_or_the_same(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "m.safetensors"
    path.write_bytes(made.model_bytes())
    (_, tensors), plan = read_tensors(path, "model"), made.plan()
    path.write_bytes(content)
    loaded = attempt(lambda: load_with_plan(path), path)
    if loaded is not None:
        state = loaded[0].state_dict()
        assert loaded[1] == plan
        assert same(dict(state), {name: tensors[name] for name in state})


@cases(300)
@given(content=damaged(state_bytes))
def test_a_damaged_checkpoint_is_refused_or_the_same(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "c.safetensors"
    path.write_bytes(state_bytes())
    before = read_state(path)
    path.write_bytes(content)
    after = attempt(lambda: read_state(path), path)
    assert after is None or same(before, after)


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
@cases(300)
@given(data=st.data())
def test_damaged_weights_of_others_are_refused_or_tensors(tmp_path: Path, suffix: str, data: st.DataObject) -> None:
    path = tmp_path / f"w{suffix}"
    path.write_bytes(data.draw(damaged(lambda: torch_bytes(suffix))))
    found = attempt(lambda: read_weights(path, "model.weights"), path)
    assert found is None or all(isinstance(tensor, torch.Tensor) for tensor in found.values())


NUMBERS = [0, -1, 1, 2, 3, 17, 10**5, 10**12, -(10**30), 0.5, -0.0, 1e300, -1e-300]
TEXTS = ["", "x", "blocks.1", "blocks.1.attn", "blocks.0.mlp:hidden", "../x", "os:system", "G5", "\x1b[2J", "\ud800"]
LISTS = [[], [[]], [0], [0, 1], [1, 0], ["blocks.1.attn", None]]
ODD = [None, True, False, *NUMBERS, *TEXTS, "ü" * 500, *LISTS, {}, {"use": "G1"}, {"use": "usdc-static"}]
odd = st.sampled_from(ODD).map(copy.deepcopy)


@st.composite
def altered(draw: st.DrawFn, source: Callable[[], Any]) -> Any:
    """A JSON value with one to three of its parts replaced, removed, doubled, or given another name."""
    root = {"root": json.loads(json.dumps(source()))}
    for _ in range(draw(st.integers(1, 3))):
        places = list(_places(root))
        holder, key = draw(st.sampled_from(places))
        kind = draw(st.sampled_from(("replace", "replace", "remove", "double", "rename")))
        if kind == "replace" or holder is root:
            holder[key] = draw(odd)
        elif kind == "remove":
            del holder[key]
        elif isinstance(holder, list):
            holder.insert(key, copy.deepcopy(holder[key]))
        else:
            holder[draw(st.sampled_from(("x", "use", "path", "pretrained", "depth", "img_size", "a.b")))] = (
                copy.deepcopy(holder[key])
            )
    return root["root"]


def _places(value: Any) -> Any:
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, inner in list(items):
        yield value, key
        yield from _places(inner)


@cases(150)
@given(stated=altered(lambda: json.loads(made.plan().model_dump_json())))
def test_a_plan_with_odd_values_is_refused_or_runs(tmp_path: Path, stated: Any) -> None:
    path = tmp_path / "m.safetensors"
    path.write_bytes(made.model_bytes())
    write_tensors(path, "model", json.dumps(stated), read_tensors(path, "model")[1])
    loaded = attempt(lambda: load_with_plan(path), path)
    if loaded is None:
        return
    model, plan = loaded
    assert plan == parse_plan(json.dumps(stated), "there")
    assert plan.base is not None
    with torch.no_grad():
        model(torch.zeros(2, *plan.base.input_shape))


@pytest.mark.parametrize("plugin", list(tokens.RECORDS))
@cases(40)
@given(data=st.data())
def test_records_of_tokens_with_odd_values_are_refused_or_run(tmp_path: Path, plugin: str, data: st.DataObject) -> None:
    path = tmp_path / "m.safetensors"
    path.write_bytes(tokens.model_bytes(plugin))
    header, tensors = read_tensors(path, "model")
    stated = json.loads(header.text)
    stated["records"] = data.draw(altered(lambda: stated["records"]))
    write_tensors(path, "model", json.dumps(stated), tensors)
    loaded = attempt(lambda: load_with_plan(path), path)
    if loaded is not None:
        with torch.no_grad(), contextlib.suppress(UsdcoreError):
            loaded[0](torch.zeros(2, *tokens.BASE.input_shape))
            loaded[0].train()(torch.zeros(2, *tokens.BASE.input_shape))


@cases(300)
@given(data=st.data())
def test_a_header_with_odd_values_is_refused(tmp_path: Path, data: st.DataObject) -> None:
    content = made.model_bytes()
    end = 8 + int.from_bytes(content[:8], "little")
    header = json.loads(content[8:end])
    changed = data.draw(altered(lambda: header))
    (tmp_path / "m.safetensors").write_bytes(made.raw(json.dumps(changed), content[end:]))
    if changed == header:
        return
    with pytest.raises(UsdcoreError):
        read_tensors(tmp_path / "m.safetensors", "model")


def _state_tree() -> Any:
    header = json.loads(state_bytes()[8 : 8 + int.from_bytes(state_bytes()[:8], "little")])
    return json.loads(header["__metadata__"]["usdcore.state"])


@cases(300)
@given(tree=altered(_state_tree))
def test_a_state_with_odd_values_is_refused_or_a_mapping(tmp_path: Path, tree: Any) -> None:
    path = tmp_path / "c.safetensors"
    path.write_bytes(state_bytes())
    write_tensors(path, "checkpoint", json.dumps(tree), read_tensors(path, "checkpoint")[1])
    assert isinstance(attempt(lambda: read_state(path), path), dict | None)


@cases(30)
@given(stated=altered(lambda: json.loads((run.finished() / "run" / "result.json").read_text())))
def test_a_result_with_odd_values_is_refused_or_a_report(tmp_path: Path, stated: Any) -> None:
    (tmp_path / "result.json").write_text(json.dumps(stated))
    if attempt(lambda: write_report(tmp_path), tmp_path) is not None:
        assert "\x1b" not in (tmp_path / "report.html").read_text()
