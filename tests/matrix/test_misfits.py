"""Models and inputs that can't be traced, strategies that get in their own way, and USDC's static part on hosts of
other kinds than a plain ViT.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from matrix.models import find
from usdcore.costs import cost
from usdcore.errors import UsdcoreError
from usdcore.gates import Draw, ForwardState, Gate
from usdcore.hooks import registry
from usdcore.runner import CHILD
from usdcore.session import Session
from usdcore.strategy import Attachment, Budget, Strategy
from usdcore.units import find_units


class Deciding(nn.Module):
    """Branches on a value."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        y = self.linear(x)
        return y if y.mean() > 0 else -y


class Asking(Deciding):
    """Asks for a number."""

    def forward(self, x: Tensor) -> Tensor:
        return x[:, : int(self.linear(x).argmax().item())]


class Leaving(Deciding):
    """Leaves torch."""

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(torch.from_numpy(x.numpy()))


@pytest.mark.parametrize(
    ("kind", "line"),
    [
        (Deciding, "return y if y.mean() > 0 else -y"),
        (Asking, "return x[:, : int(self.linear(x).argmax().item())]"),
        (Leaving, "return self.linear(torch.from_numpy(x.numpy()))"),
    ],
)
def test_the_line_that_stops_the_trace_is_named(kind: type[nn.Module], line: str) -> None:
    code = Path(__file__).read_text().splitlines()
    number = next(i for i, text in enumerate(code, 1) if text.strip() == line)
    with pytest.raises(UsdcoreError, match=rf"{Path(__file__).name}:{number}: ") as caught:
        find_units(nn.Sequential(nn.Identity(), kind()), torch.zeros(1, 4))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("shape", [(1, 3, 40, 40), (1, 1, 32, 32), (3, 32, 32), (1, 3, 32), (1, 3, 0, 32)])
def test_inputs_of_a_wrong_shape(vit: nn.Module, shape: tuple[int, ...]) -> None:
    with pytest.raises(UsdcoreError, match=r"on inputs \[2, .*\], at .*\.py:\d+: .*example_inputs fit") as caught:
        find_units(vit, torch.zeros(shape))
    assert len(str(caught.value)) < 400


@pytest.mark.parametrize("inputs", ["images", (), torch.zeros(())])
def test_inputs_that_are_none(vit: nn.Module, inputs: Any) -> None:
    with pytest.raises(UsdcoreError, match=r"example_inputs must be a tensor \[B, \.\.\.\]"):
        find_units(vit, inputs)


class Half(Gate):
    """Halves whatever it stands at."""

    def __init__(self, site: str) -> None:
        super().__init__()
        self.sites = (site,)

    def draw(self, x_BNC: Tensor | None, state: ForwardState) -> dict[str, Draw]:
        return {self.sites[0]: Draw(torch.tensor(0.5))}


class Twice(Strategy):
    """Puts two gates at one branch."""

    def attach(self, site: Attachment) -> None:
        site.gate("first", Half("blocks.0.mlp"))
        site.gate("second", Half("blocks.0.mlp"))


def test_one_strategy_that_claims_a_unit_twice(vit: nn.Module, images: Tensor) -> None:
    config = registry().config("strategy", "usdc-static").model_validate({"use": "usdc-static"})
    session = Session(vit, images, Budget("macs", 0.9, batch_size=5))
    with pytest.raises(UsdcoreError, match=r"usdc-static acts twice on blocks\.0\.mlp, by its gates 'first'"):
        session.begin_phase([Twice(config)])


@pytest.mark.parametrize("name", ["levit_256", "t2t_vit_14", "vit_base_patch16_224"])
def test_usdc_static_searches_and_shrinks(name: str) -> None:
    entry = find(name)
    model, images = entry.model(is_small=True), entry.images(True, 4)
    session = Session(model, images, Budget("macs", 0.8, batch_size=4))
    config = registry().config("strategy", "usdc-static").model_validate({"use": "usdc-static"})
    session.begin_phase([registry().load("strategy", "usdc-static")(config)])
    groups = [{"params": group.parameters, "lr": group.lr or 0.1} for group in session.parameter_groups]
    own = [p for n, p in session.model.named_parameters() if not n.startswith(f"{CHILD}.")]
    optimizer = torch.optim.Adam([*groups, {"params": own, "lr": 1e-4}])
    session.model.train()
    for step in range(4):
        session.begin_step(step, 4, images=images, lr=1e-4)
        output = session.model(images)
        loss = session.task_weight * output.logsumexp(-1).mean() + session.loss(output, torch.zeros(4).long())
        optimizer.zero_grad()
        loss.backward()
        session.after_backward()
        optimizer.step()
        session.after_step()
    session.end_phase(lambda: [images])
    assert cost(session.units).macs <= 0.8 * session.dense.macs
    assert session.model.eval()(images).shape == (4, 7)
