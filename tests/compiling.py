"""Small sessions to compile, and when two steps are the same."""

from __future__ import annotations

import logging
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch._inductor import config
from zoo import INPUT, SMALL, randomise

from usdcore.construct import create
from usdcore.hooks import registry
from usdcore.plans import Base
from usdcore.session import Session
from usdcore.strategy import Budget

STATIC, DYNAMIC = {"use": "usdc-static"}, {"use": "usdc-dynamic", "gate_network": "G1"}


@pytest.fixture
def no_traces(caplog: pytest.LogCaptureFixture) -> None:
    """A test's log takes torch's traces of what it compiles, which takes longer than to compile it."""
    caplog.set_level(logging.CRITICAL, "torch.__trace")


#: While it decorates a test, the machine has none for inductor.
no_compiler = config.patch({"cpp.cxx": ("no-such-compiler",)})


def small(depth: int) -> nn.Module:
    torch.manual_seed(0)
    kwargs = {**SMALL, "depth": depth}
    del kwargs["num_classes"]
    return randomise(create(Base(name="vit_tiny_patch16_224", kwargs=kwargs, num_classes=7, input_shape=INPUT))).train()


def session_of(model: nn.Module, strategies: list[dict[str, Any]]) -> Session:
    scope: Any = "sample" if any(options["use"] == "adavit" for options in strategies) else "batch"
    session = Session(model, torch.zeros(1, *INPUT), Budget("macs", 0.92, 6, scope))
    torch.manual_seed(0)
    named = []
    for options in strategies:
        config = registry().config("strategy", options["use"]).model_validate(options)
        named.append(registry().load("strategy", options["use"])(config))
    session.begin_phase(named)
    session.model.train()
    return session


def require_close(found: dict[str, Tensor], wanted: dict[str, Tensor]) -> None:
    """To 1e-5 of the largest entry of each tensor; of one that is nearly nothing but rounding, of all."""
    assert found.keys() == wanted.keys()
    whole = max(float(tensor.abs().max()) for tensor in wanted.values())
    for name, tensor in wanted.items():
        within = 1e-5 * max(float(tensor.abs().max()), 1e-2 * whole)
        gap = float((found[name] - tensor).abs().max())
        assert gap <= within, f"{name}: {gap} > {within}"
