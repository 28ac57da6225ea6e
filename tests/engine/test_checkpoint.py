"""A checkpoint holds any tree of a run's state, and refuses what is not one."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.torch import save_file

from usdcore.engine.checkpoint import read_state, write_state
from usdcore.errors import UsdcoreError

leaves = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text()
trees = st.recursive(
    leaves,
    lambda t: st.lists(t) | st.tuples(t, t) | st.dictionaries(st.integers() | st.text(), t),
    max_leaves=12,
)


@settings(max_examples=50, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(tree=trees)
def test_round_trip(tmp_path: Path, tree: object) -> None:
    write_state({"tree": tree}, tmp_path / "x.safetensors")
    assert read_state(tmp_path / "x.safetensors") == {"tree": tree}


def test_an_optimizer_goes_on(tmp_path: Path) -> None:
    parameter = torch.nn.Parameter(torch.ones(3))
    first = torch.optim.AdamW([parameter], lr=0.1)
    (parameter**2).sum().backward()
    first.step()
    write_state({"o": first.state_dict(), "p": parameter}, tmp_path / "x.safetensors")
    twin = torch.nn.Parameter(torch.zeros(3))
    second = torch.optim.AdamW([twin], lr=0.5)
    state = read_state(tmp_path / "x.safetensors")
    twin.data.copy_(state["p"])
    second.load_state_dict(state["o"])
    for p, optimizer in ((parameter, first), (twin, second)):
        optimizer.zero_grad()
        (p**2).sum().backward()
        optimizer.step()
    assert torch.equal(parameter, twin)


def test_tensors_that_share_memory(tmp_path: Path) -> None:
    tensor = torch.arange(6.0)
    write_state({"a": tensor, "b": tensor[2:]}, tmp_path / "x.safetensors")
    assert torch.equal(read_state(tmp_path / "x.safetensors")["b"], tensor[2:])


def test_numbers_that_json_has_not(tmp_path: Path) -> None:
    write_state({"a": [math.inf, -math.inf, math.nan]}, tmp_path / "x.safetensors")
    least, most, none = read_state(tmp_path / "x.safetensors")["a"]
    assert (least, most) == (math.inf, -math.inf)
    assert math.isnan(none)


def test_every_kind_of_tensor(tmp_path: Path) -> None:
    kinds = [torch.bool, torch.uint8, torch.int64, torch.float16, torch.bfloat16, torch.float64]
    state = {"tensors": [torch.ones(shape, dtype=kind) for kind in kinds for shape in ((), (0, 3), (2, 3))]}
    write_state(state, tmp_path / "x.safetensors")
    for before, after in zip(state["tensors"], read_state(tmp_path / "x.safetensors")["tensors"], strict=True):
        assert before.dtype == after.dtype
        assert torch.equal(before, after)


def test_others_can_read_it(tmp_path: Path) -> None:
    """It is a safetensors file, and stays one of ours when another program writes it again."""
    write_state({"a": torch.arange(3), "b": torch.ones(2, dtype=torch.float64)}, tmp_path / "x.safetensors")
    with safe_open(tmp_path / "x.safetensors", framework="pt") as file:
        metadata, tensors = file.metadata(), {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    assert torch.equal(tensors["t0"], torch.arange(3))
    save_file(tensors, tmp_path / "y.safetensors", metadata=metadata)
    assert torch.equal(read_state(tmp_path / "y.safetensors")["b"], torch.ones(2, dtype=torch.float64))


def test_damaged(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    write_state({"a": torch.ones(100)}, path)
    path.write_bytes(path.read_bytes()[:-40])
    with pytest.raises(UsdcoreError, match=r"damaged: its tensors take 400 bytes, the file holds 360"):
        read_state(path)
