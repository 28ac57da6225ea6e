"""AdaViT on small models: sessions, training, and decisions that differ from image to image."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from zoo import INPUT, randomise

from usdcore.construct import create
from usdcore.gates import Gating
from usdcore.hooks import registry
from usdcore.measure import Meter
from usdcore.plans import Plan
from usdcore.runner import gating_of
from usdcore.session import Session
from usdcore.strategy import Budget
from usdcore.testing.models import BASES

ONE = torch.zeros(1, *INPUT)


def make(name: str = "adavit", **options: Any) -> Any:
    config = registry().config("strategy", name).model_validate({"use": name, **options})
    return registry().load("strategy", name)(config)


def session_of(model: nn.Module, strategies: list[Any], target: float = 0.6, scope: Any = "sample") -> Session:
    session = Session(model, ONE, Budget("macs", target, batch_size=4, scope=scope))
    session.begin_phase(strategies)
    return session


def scattered(session: Session, strategy: Any, images: torch.Tensor, seed: int = 3) -> None:
    """Decisions that differ from image to image and from block to block: about half of each kind are on."""
    generator = torch.Generator().manual_seed(seed)

    def centre(linear: Any, args: tuple[torch.Tensor]) -> None:
        logits = torch.nn.functional.linear(args[0], linear.weight)
        linear.bias.copy_(0.1 - logits.flatten(0, -2).mean(0))

    with torch.no_grad():
        hooks = []
        for gate in strategy.policy_gates:
            for linear in (m for m in (gate.heads, gate.layers, gate.tokens) if m is not None):
                linear.weight.copy_(torch.randn(linear.weight.shape, generator=generator))
                hooks.append(linear.register_forward_pre_hook(centre))
        session.model.eval()(images)
    for hook in hooks:
        hook.remove()


def gating(session: Session) -> Gating:
    found = gating_of(session.model)
    assert found is not None
    return found


def executed(session: Session, images: torch.Tensor) -> int:
    """MACs of the last forward, as the session measures them."""
    meter = Meter(session.units, gating(session))
    meter.add(len(images))
    return meter.batches[0][0]


def train(session: Session, steps: int, images: torch.Tensor, lr: float = 1e-2) -> None:
    torch.manual_seed(0)
    optimizer = torch.optim.Adam([{"params": g.parameters, "lr": g.lr or lr} for g in session.parameter_groups])
    session.model.train()
    for step in range(steps):
        session.begin_step(step, steps)
        session.loss(session.model(images), torch.zeros(len(images))).backward()
        optimizer.step()
        optimizer.zero_grad()
        session.after_step()


def based(kind: str = "vit", seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    return randomise(create(BASES[kind])).eval()


def begun(strategies: list[Any], target: float = 0.6) -> Session:
    plan = Plan(base=BASES["vit"])
    session = Session(based(), ONE, Budget("macs", target, batch_size=4, scope="sample"), plan)
    session.begin_phase(strategies)
    return session
