"""usdcore's conformance kit over `wanda`, and what the paper says of the score."""

from __future__ import annotations

import torch
from torch import nn
from usdcore_wanda.method import Reader

from usdcore.testing import conformance

TestWanda = conformance("wanda")


def test_the_score_is_equation_1() -> None:
    torch.manual_seed(0)
    module, x = nn.Linear(6, 3), torch.randn(4, 5, 6)
    reader = Reader(module, torch.tensor([0, 0, 1, 1, 2, -1]))
    module(x)
    assert reader.now is not None
    reader.squares = reader.now
    eq1 = module.weight.abs() * x.flatten(0, 1).square().mean(0).sqrt()
    wanted = [eq1[:, :2].sum(), eq1[:, 2:4].sum(), eq1[:, 4].sum()]
    torch.testing.assert_close(reader.scores(3), torch.stack(wanted).detach())
