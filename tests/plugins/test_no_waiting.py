"""A search step keeps every number on the device: no built-in strategy makes the host wait for it."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from syncing import no_waiting
from torch import Tensor, nn
from zoo import INPUT

from usdcore.hooks import registry
from usdcore.session import Session
from usdcore.strategy import Budget, Strategy

STATIC, DYNAMIC, UVC = {"use": "usdc-static"}, {"use": "usdc-dynamic"}, {"use": "uvc", "warmup": 0.0}
FEATURES = {"use": "distill", "kind": "features", "features": {}}
WAYS: dict[str, list[dict[str, Any]]] = {
    "usdc-static": [STATIC],
    "usdc-static soft": [{**STATIC, "hard": False, "target": 0.7, "mix": "literal"}],
    "usdc-dynamic": [DYNAMIC],
    "usdc-dynamic gumbel": [{**DYNAMIC, "relaxation": "gumbel", "shuffle": "layer", "information_weight": 0.1}],
    "usdc": [STATIC, DYNAMIC],
    "uvc": [UVC],
    "uvc by branches": [{**UVC, "skip": "branch", "hard": False}],
    "uvc faithful": [{**UVC, "faithful": True}],
    "uvc with distill": [UVC, {"use": "distill"}],
    "distill features": [FEATURES],
    "dynamicvit": [{"use": "dynamicvit", "keep_ratio": 0.7, "places": [1]}],
    "adavit": [{"use": "adavit", "target": 0.7}],
    "random-gates": [{"use": "random-gates"}],
    "prune": [{"use": "prune", "importance": "taylor"}],
    "tome": [{"use": "tome"}],
}


def strategies(way: str) -> list[Strategy]:
    made = []
    for options in WAYS[way]:
        config = registry().config("strategy", options["use"]).model_validate(options)
        made.append(registry().load("strategy", options["use"])(config))
    return made


def step(session: Session, number: int, images: Tensor, target: Tensor) -> None:
    session.begin_step(number, 100, images=images, lr=1e-3)
    output = session.model(images)
    loss = session.task_weight * nn.functional.cross_entropy(output, target) + session.loss(output, target)
    loss.backward()  # type: ignore[no-untyped-call]
    session.after_backward()
    session.after_step()


@pytest.mark.parametrize("way", WAYS)
def test_a_step_never_waits_for_the_device(vit: nn.Module, way: str) -> None:
    session = Session(vit, torch.zeros(1, *INPUT), Budget("macs", 0.9, 4, "sample" if way == "adavit" else "batch"))
    session.begin_phase(strategies(way))
    session.model.train()
    images, target = torch.randn(4, *INPUT), torch.zeros(4, dtype=torch.long)
    step(session, 10, images, target)  # the first one may make what all others use
    with no_waiting():
        for number in (11, 12):
            step(session, number, images, target)


@pytest.mark.parametrize(
    "waits",
    [
        lambda x: float(x.sum()),
        lambda x: x.sum().item(),
        lambda x: bool(x.any()),
        lambda x: x.tolist(),
        lambda x: x.cpu(),
        lambda x: x[x > 0],
        lambda x: x[:, [0, 1]],
        lambda x: x.nonzero(),
        lambda x: x.new_tensor(0.5),
        lambda x: x * torch.tensor([1.0, 2.0]),
    ],
)
def test_what_waits_is_noticed(waits: Any) -> None:
    x = torch.ones(2, 2)
    with pytest.raises(AssertionError, match="waits for the device"), no_waiting():
        waits(x)
