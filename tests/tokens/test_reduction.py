"""Tokens replaced on the way: fewer of them from a place on, other ones for the head, and restored."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from counting import counted_macs
from tokens.acting import session
from torch import Tensor, nn
from zoo import gap

from usdcore.errors import UsdcoreError
from usdcore.gates import ForwardState, Reducer
from usdcore.runner import detach
from usdcore.strategy import Attachment, Strategy


class First(Reducer):
    """Keeps the first tokens; `restores` puts the others back as they were where they left."""

    def __init__(self, site: str, count: int = 0, restores: bool = False) -> None:
        super().__init__()
        self.sites, self.count, self.restores, self.fewest_tokens = (site,), count, restores, max(count, 1)

    def reduce(self, x_BNC: Tensor, state: ForwardState) -> Tensor:
        if self.restores:
            return torch.cat([x_BNC, state.notes.pop("first")], dim=1)
        state.notes["first"] = x_BNC[:, self.count :]
        return x_BNC[:, : self.count]


class Reducing(Strategy):
    """Reducers at given sites."""

    def __init__(self, *gates: First) -> None:
        super().__init__(SimpleNamespace(use="reducing"))
        self.made = gates

    def attach(self, site: Attachment) -> None:
        for gate in self.made:
            site.gate(gate.sites[0], gate)


PLACES = [
    (First("blocks.1:tokens", 7),),
    (First("blocks.1.mlp:tokens", 7),),
    (First("blocks.1.attn:tokens", 9), First("blocks.2:tokens", 5)),
    (First("blocks.0:output", 7),),
    (First("blocks.0.mlp:tokens", 7), First("blocks.1:output", restores=True)),
    (First("blocks.2:output", 1),),
]


@pytest.mark.parametrize("gates", PLACES, ids=lambda gates: " and ".join(gate.sites[0] for gate in gates))
def test_the_cost_is_counted_and_training_computes_the_same(
    gates: tuple[First, ...], vit: nn.Module, images: Tensor
) -> None:
    with torch.no_grad():
        host = vit(images)
        made = session(vit, Reducing(*gates), target=1.0)
        found = made.model(images)
        assert made.execution(lambda: [images]).macs * len(images) == counted_macs(made.model, images)
        made.begin_step(0, 1)
        made.losses(made.model.train()(images), torch.zeros(len(images), dtype=torch.long))
        executed = made.execution(lambda: [images]).macs / made.dense.macs
        assert float(made.ctx.spent) == pytest.approx(executed, rel=1e-6)  # type: ignore[arg-type]
        assert gap(made.model(images), found) < 1e-6
        is_seen = not gates[0].sites[0].startswith("blocks.2:output")  # the head reads the class token alone
        assert (gap(found, host) > 1e-3) == is_seen


def test_what_the_head_reads_can_be_replaced(vit: nn.Module, images: Tensor) -> None:
    class Mean(First):
        def reduce(self, x_BNC: Tensor, state: ForwardState) -> Tensor:
            return x_BNC.mean(1, keepdim=True)

    made = session(vit, Reducing(Mean("blocks.2:output", 1)), target=1.0)
    with torch.no_grad():
        found = made.model(images)
        tokens = vit.norm_pre(vit._pos_embed(vit.patch_embed(images)))
        for block in vit.blocks:
            tokens = type(block).forward(block, tokens)
        expected = vit.head(vit.norm(tokens.mean(1, keepdim=True))[:, 0])
    assert gap(found, expected) < 1e-5


class Watching(First):
    """Notes what the class token looks at in the first two blocks."""

    watches = ("blocks.0", "blocks.1")

    def reduce(self, x_BNC: Tensor, state: ForwardState) -> Tensor:
        self.seen = dict(state.first_rows)
        return x_BNC


def test_what_the_first_token_looks_at(model: nn.Module, fused: bool, images: Tensor) -> None:
    gate = Watching("blocks.2:tokens", 1)
    made = session(model, Reducing(gate), target=1.0)
    with torch.no_grad():
        host = made.model(images)
        assert made.execution(lambda: [images]).macs * len(images) == counted_macs(made.model, images)
    assert list(gate.seen) == ["blocks.0", "blocks.1"]
    for name, row in gate.seen.items():
        attention = model.get_submodule(name).attn
        assert row.shape[:2] == (len(images), attention.num_heads)
        torch.testing.assert_close(row.sum(-1), torch.ones(row.shape[:2]))
    detach(made.model)
    with torch.no_grad():
        assert gap(made.model(images), host) < 1e-6
        expected = _row(model, images)
    torch.testing.assert_close(gate.seen["blocks.0"], expected, atol=1e-5, rtol=1e-4)


def _row(model: nn.Module, images: Tensor) -> Tensor:
    """Of the first block, from its queries and keys."""
    seen = {}
    block = model.blocks[0]
    hook = block.attn.register_forward_pre_hook(lambda _, args: seen.update(x=args[0]))
    model(images)
    hook.remove()
    attention, x = block.attn, seen["x"]
    q, k, _ = attention.qkv(x).reshape(*x.shape[:2], 3, attention.num_heads, -1).permute(2, 0, 3, 1, 4)
    q, k = attention.q_norm(q), attention.k_norm(k)
    return (q[:, :, :1] @ k.transpose(-2, -1) * attention.scale).softmax(-1)[:, :, 0]


@pytest.mark.parametrize("site", ["blocks.7:tokens", "blocks.1.mlp:output", "head:tokens"])
def test_there_is_no_such_place(site: str, vit: nn.Module) -> None:
    with pytest.raises(UsdcoreError, match=f"no such branch, block or group in this model: {site}"):
        session(vit, Reducing(First(site, 3)))
