"""Laws about gate networks by themselves; inside `usdc-dynamic` they are tried as a strategy is."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from usdcore.counting import counted_macs
from usdcore.testing.laws import Broken

if TYPE_CHECKING:
    from collections.abc import Iterator

    from usdcore.testing.subject import Subject

SHAPES = ((48, 2), (48, 1), (37, 3))
"""Widths and numbers of outputs to try."""


def _networks(subject: Subject) -> Iterator[tuple[Any, int, int, str]]:
    for width, outputs in SHAPES:
        torch.manual_seed(0)
        network = subject.load()(subject.config(), width, outputs)
        yield network, width, outputs, f"{subject.where}, of width {width} with {outputs} outputs"


def _pooled(size: int, width: int) -> Tensor:
    return torch.randn(size, width, generator=torch.Generator().manual_seed(1))


def shapes(subject: Subject) -> None:
    """Logits are [B, outputs] in both modes, finite, and every parameter gets a gradient."""
    for network, width, outputs, where in _networks(subject):
        if not isinstance(network, nn.Module):
            raise Broken(where, f"it is a {type(network).__name__}, no nn.Module", "subclass torch.nn.Module")
        for training in (False, True):
            made = network.train(training)(_pooled(4, width))
            if tuple(made.shape) != (4, outputs) or not bool(torch.isfinite(made).all()):
                what = f"4 images give {list(made.shape)}{'' if made.isfinite().all() else ', not all finite'}"
                raise Broken(where, what, "forward() takes [B, width] and gives [B, outputs]")
        made.square().sum().backward()
        idle = [name for name, parameter in network.named_parameters() if parameter.grad is None]
        if idle:
            raise Broken(where, f"the parameter {idle[0]} gets no gradient", "use it in forward(), or leave it out")


@torch.no_grad()
def apart(subject: Subject) -> None:
    """In evaluation mode the logits of an image do not depend on the others of its batch."""
    for network, width, _, where in _networks(subject):
        pooled = _pooled(4, width)
        alone = torch.cat([network.eval()(pooled[i : i + 1]) for i in range(len(pooled))])
        if not torch.allclose(network(pooled), alone, atol=1e-5):
            do = "use what was learned (running statistics), not the batch's own, in evaluation mode"
            raise Broken(where, "an image alone gets other logits than in a batch of 4", do)


def counted(subject: Subject) -> None:
    """`macs` is what torch's FLOP counter says of one image; `paper_flops` is a whole number."""
    for network, width, _, where in _networks(subject):
        count = counted_macs(network.eval(), _pooled(1, width))
        if getattr(network, "macs", None) != count:
            what = f".macs is {getattr(network, 'macs', 'missing')}, and torch counts {count}"
            raise Broken(where, what, "set self.macs to the multiply-accumulates of its matrix products, per image")
        flops = getattr(network, "paper_flops", None)
        if not isinstance(flops, int) or flops < 0:
            do = "set it by your paper's rule, or to 2 * in * out + out summed over the linear maps; reports show it"
            raise Broken(where, f".paper_flops is {flops!r}", do)


@torch.no_grad()
def head(subject: Subject) -> None:
    """`head` is the last linear map: with its weights at 0, its bias is what comes out."""
    for network, width, outputs, where in _networks(subject):
        last = getattr(network, "head", None)
        if not isinstance(last, nn.Linear | nn.Conv1d) or last.bias is None or len(last.bias) != outputs:
            what = f".head is {type(last).__name__}, not the last linear map with a bias of {outputs}"
            raise Broken(where, what, "call the last nn.Linear (or nn.Conv1d) self.head: a gate's start is set there")
        nn.init.zeros_(last.weight)
        nn.init.constant_(last.bias, 0.25)
        if not torch.allclose(network.eval()(_pooled(2, width)), torch.full((2, outputs), 0.25)):
            raise Broken(where, "its logits are not the bias of .head where that weighs nothing", "end with .head")
