"""A checkpoint holds any tree of a run's state, and refuses what is not one."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

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


def test_damaged(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    write_state({"a": torch.ones(100)}, path)
    path.write_bytes(path.read_bytes()[:-40])
    with pytest.raises(UsdcoreError, match=r"a damaged checkpoint .*; remove it to start the run over"):
        read_state(path)
