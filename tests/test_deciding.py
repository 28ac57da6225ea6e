"""How gates pool the stream, and what they decide in evaluation: alike for a forward that skips and one that masks."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

from usdcore.deciding import decided, pooled
from usdcore.gates import Draw, ForwardState, Scope

if TYPE_CHECKING:
    from collections.abc import Mapping


class Fetches(TorchDispatchMode):
    """Counts how often numbers are fetched to the host."""

    def __init__(self) -> None:
        super().__init__()
        self.found = 0

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        self.found += func is torch.ops.aten._local_scalar_dense.default
        return func(*args, **(kwargs or {}))


def draws(logits_BS: Tensor, threshold: float, scope: Scope, *, skips: bool) -> list[Draw]:
    return decided(logits_BS, threshold, scope, ForwardState(skips=skips))


@pytest.mark.parametrize("scope", ["batch", "sample"])
@pytest.mark.parametrize("batch_size", [1, 2, 7])
@pytest.mark.parametrize("threshold", [0.0, 0.1, -0.3])
def test_skipping_and_masking_decide_alike(scope: Scope, batch_size: int, threshold: float) -> None:
    logits_BS = torch.randn(batch_size, 3, generator=torch.Generator().manual_seed(batch_size))
    logits_BS[0, 0] = threshold  # what lies on the threshold, as it is in single precision, is off for both
    for ours, theirs in zip(
        draws(logits_BS, threshold, scope, skips=True), draws(logits_BS, threshold, scope, skips=False), strict=True
    ):
        assert ours.keep.shape == theirs.keep.shape == (() if scope == "batch" else (batch_size,))
        assert torch.equal(ours.keep, theirs.keep)
        assert theirs.on is None
        on = bool(ours.keep) if scope == "batch" else tuple(bool(value) for value in ours.keep)
        assert ours.on == on
        state = ForwardState(draws={"here": [theirs]})
        assert state.on("here", theirs.keep) == on


def test_several_gates_at_a_site_decide_together() -> None:
    first, second = Draw(torch.ones(2), on=(True, True)), Draw(torch.tensor([1.0, 0.0]), on=(True, False))
    state = ForwardState(draws={"here": [first, second]})
    keep = state.factor("here")
    assert keep is not None
    assert state.on("here", keep) == (True, False)


@pytest.mark.parametrize("scope", ["batch", "sample"])
def test_masking_fetches_nothing(scope: Scope) -> None:
    with Fetches() as fetches:
        draws(torch.randn(4, 2), 0.0, scope, skips=False)
        draws(torch.randn(1, 2), 0.0, scope, skips=False)
    assert fetches.found == 0


@pytest.mark.parametrize("batch_size", [1, 3])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_pooling_is_the_mean_over_tokens_and_no_macs(batch_size: int, dtype: torch.dtype) -> None:
    x_BNC = 1 + torch.randn(batch_size, 197, 5).to(dtype)  # a share of 1/197 is far off in bfloat16
    with FlopCounterMode(display=False) as counter:
        found = pooled(x_BNC, ForwardState(skips=True))
    torch.testing.assert_close(found, x_BNC.mean(1))
    torch.testing.assert_close(pooled(x_BNC, ForwardState()), x_BNC.mean(1), rtol=0, atol=0)
    assert counter.get_total_flops() == 0


@pytest.mark.parametrize("scope", ["batch", "sample"])
def test_an_empty_batch_decides_nothing(scope: Scope) -> None:
    for skips in (True, False):
        assert len(draws(torch.randn(0, 3), 0.0, scope, skips=skips)) == 3


@pytest.mark.parametrize("scope", ["batch", "sample"])
def test_what_a_trace_sees_is_not_kept(scope: Scope) -> None:
    state = ForwardState(skips=True)

    def seen(x_BNC: Tensor) -> Tensor:
        return torch.stack([draw.keep for draw in decided(pooled(x_BNC, state), 0.25, scope, state)])

    x_BNC = torch.randn(1, 9, 2)
    with FakeTensorMode() as fake:
        seen(fake.from_tensor(x_BNC))
    with torch.device("meta"):
        expected = seen(x_BNC)
    compiled = torch.compile(seen, backend="eager", fullgraph=True)
    assert expected.device.type == "cpu"
    assert torch.equal(compiled(x_BNC), expected)
    assert torch.equal(seen(x_BNC), expected)


def test_a_decision_made_under_inference_mode_can_be_learned_around() -> None:
    with torch.inference_mode():
        draws(torch.tensor([[0.7]]), 0.25, "sample", skips=True)
    (again,) = draws(torch.tensor([[0.7]]), 0.25, "sample", skips=True)
    x = torch.ones(1, requires_grad=True)
    (again.keep * x * x).sum().backward()
    assert x.grad is not None
    assert x.grad.item() == 2
