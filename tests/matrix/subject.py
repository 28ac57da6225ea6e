"""One model of the matrix with what all of its cases share, made once."""

from __future__ import annotations

import copy
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from usdcore.teachers import primary
from usdcore.units import find_units
from usdcore.units.types import Units

from .entries import Entry

BATCH = 2


class Subject:
    """An entry's model, full or small, its units, and what the dense model itself can do."""

    def __init__(self, entry: Entry, is_small: bool) -> None:
        self.entry, self.is_small = entry, is_small
        self.images = entry.images(is_small, BATCH)
        self.example = self.images[:1].to("meta")
        self.base = entry.base(is_small)

    @cached_property
    def model(self) -> nn.Module:
        """With fused attention where there is a choice."""
        return self.entry.model(self.is_small)

    @cached_property
    def units(self) -> Units:
        """Those of `model`."""
        return find_units(self.model, self.example)

    @cached_property
    def unfused(self) -> nn.Module:
        """The same weights, attention written out."""
        return self.entry.model(self.is_small, is_fused=False)

    @cached_property
    def unfused_units(self) -> Units:
        """Those of `unfused`."""
        return find_units(self.unfused, self.example)

    @cached_property
    def num_cores(self) -> int:
        """How often the model really computes attention in a forward, counted by the kernels that run."""
        counter = _Cores()
        was = torch.backends.mha.get_fastpath_enabled()
        torch.backends.mha.set_fastpath_enabled(False)
        try:
            with torch.no_grad(), counter:
                self.unfused(self.images[:1])
        finally:
            torch.backends.mha.set_fastpath_enabled(was)
        return counter.number

    @cached_property
    def trained(self) -> frozenset[str]:
        """The dense model's parameters that a training step reaches."""
        return trained(self.model, self.images)


class _Cores(TorchDispatchMode):
    """Counts attention kernels, and each softmax whose result is used in a product."""

    def __init__(self) -> None:
        super().__init__()
        self.number = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.overloadpacket.__name__
        self.number += name in ("_softmax", "_safe_softmax") or "scaled_dot_product" in name
        return func(*args, **(kwargs or {}))


def logits(output: Any) -> Tensor:
    """What a model says of its images, whatever it wraps it in."""
    if hasattr(output, "logits"):
        output = output.logits
    return primary(output)


def trained(model: nn.Module, images: Tensor) -> frozenset[str]:
    """The names of the parameters that have a finite gradient after a training step of a copy."""
    model = copy.deepcopy(model).train()
    for parameter in model.parameters():
        parameter.requires_grad_(True)
    torch.manual_seed(0)
    logits(model(images)).square().mean().backward()
    found = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    bad = [name for name, grad in found.items() if not bool(grad.isfinite().all())]
    if bad:
        msg = f"the gradient of {bad[0]} is not finite"
        raise ValueError(msg)
    return frozenset(found)
