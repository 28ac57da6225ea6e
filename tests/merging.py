"""Models that merge tokens, for the tests of `tome`."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from zoo import INPUT, SMALL

from usdcore.executed import batch_macs
from usdcore.hooks import registry
from usdcore.session import Session
from usdcore.strategy import Budget, Strategy

ONE = torch.zeros(1, *INPUT)
SMALL_KWARGS = {key: value for key, value in SMALL.items() if key != "num_classes"}
SITES = [f"blocks.{i}.mlp:tokens" for i in range(3)]


def make(name: str, **options: Any) -> Strategy:
    config = registry().config("strategy", name).model_validate({"use": name, **options})
    return registry().load("strategy", name)(config)


def session_of(model: nn.Module, *strategies: Strategy, target: float = 1.0) -> Session:
    session = Session(model, ONE, Budget("macs", target, batch_size=4))
    session.begin_phase(strategies)
    session.model.eval()
    return session


def stated(model: nn.Module, r: Any, **options: Any) -> Session:
    """A session of a model that merges r tokens a block, whatever that costs: it is asked for parameters alone."""
    session = Session(model, ONE, Budget("params", 1.0, batch_size=4))
    session.begin_phase([make("tome", r=r, **options)])
    session.model.eval()
    return session


def executed(session: Session, size: int) -> int:
    """By the cost model, of the last forward."""
    gating = session.gating
    assert gating is not None
    state = gating.state
    return batch_macs(session.units, state.dynamic, gating.count_macs(), size, state.counts, gating.prices)
