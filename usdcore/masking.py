"""Mask the entries of a group where the model reads or makes them.

Shape legend: B images, n positions of the entries along an axis, R and S channels that a linear layer reads and makes.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from usdcore.errors import UsdcoreError

if TYPE_CHECKING:
    from usdcore.gates import Gating
    from usdcore.units.types import MaskPoint


class GroupMask:
    """A forward pre-hook: multiplies the entries of a group where a consumer reads them."""

    def __init__(self, gating: Gating, group: str, point: MaskPoint) -> None:
        self.gating = gating
        self.group = group
        self.axis, self.sample_axis = point.axis, point.sample_axis
        entry_of = torch.from_numpy(point.entry_of)
        self.entry_of = entry_of.clamp(min=0)
        self.is_free = entry_of < 0
        #: Each position is an entry of its own, in order.
        self.is_plain = bool(np.array_equal(point.entry_of, np.arange(len(point.entry_of))))

    def __call__(self, module: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...] | None:
        """Replace the consumer's first input; None (nothing to do) where no gate acts."""
        factor = self.factor()
        return None if factor is None else (self.times(args[0], factor), *args[1:])

    def factor(self) -> Tensor | None:
        """Of each position, for all images [n] or for those that now run [B, n]; None where no gate acts."""
        keep = self.gating.state.factor(self.group)
        if keep is None:
            return None
        if keep.ndim == 2 and self.gating.state.rows is not None:
            keep = keep[self.gating.state.rows]
        if self.is_plain and keep.ndim:
            return keep
        if self.entry_of.device != keep.device:  # once, not in every forward
            self.entry_of, self.is_free = self.entry_of.to(keep.device), self.is_free.to(keep.device)
        own = keep.expand(len(self.entry_of)) if keep.ndim == 0 else keep[..., self.entry_of]
        return own.masked_fill(self.is_free, 1.0)

    def times(self, x: Tensor, factor: Tensor) -> Tensor:
        """The entries of `x` times their factors."""
        if factor.ndim == 2 or self.axis != -1:
            factor = self._placed(factor, x)
        return x * factor.to(x.dtype)

    def _placed(self, factor: Tensor, x: Tensor) -> Tensor:
        """A factor [n] or [B, n] shaped to multiply x, which may hold several rows of each sample."""
        shape = [1] * x.ndim
        shape[self.axis] = -1
        if factor.ndim == 2:
            if self.sample_axis is None:
                msg = f"{self.group}: its gate decides for each image, but where the model reads it, tokens and images "
                raise UsdcoreError(msg + "lie along one axis; give the gate one decision for all images")
            rows = x.shape[self.sample_axis] // len(factor)
            factor = factor if rows < 2 else factor.repeat_interleave(rows, dim=0)
            shape[self.sample_axis] = len(factor)
        return factor.reshape(shape)


class OutputMask(GroupMask):
    """A forward hook: multiplies the entries of a group where a projection makes them."""

    def __call__(self, module: nn.Module, args: tuple[Any, ...], output: Any = None) -> Any:
        """Replace the output; None (nothing to do) where no gate acts."""
        factor = self.factor()
        return None if factor is None else self.times(output, factor)


class MaskedLinear:
    """The forward of a linear layer that reads entries of groups.

    In a training step, decisions that are the same for all images are multiplied into its weight [S, R]: there are
    fewer numbers than in a batch of what it reads, and no second copy of that has to be kept for the backward pass.
    """

    def __init__(self, module: nn.Linear, gating: Gating) -> None:
        self.module = module
        self.gating = gating
        self.masks: list[GroupMask] = []

    def __call__(self, x: Tensor) -> Tensor:
        """As the host's with masked entries, [..., S] from [..., R]."""
        weight, bias = self.module.weight, self.module.bias
        folds = self.gating.training and torch.is_grad_enabled() and x.numel() > weight.numel()
        for own in self.masks:
            factor = own.factor()
            if factor is None:
                continue
            if folds and factor.ndim == 1:
                weight = weight * factor.to(weight.dtype)
            else:
                x = own.times(x, factor)
        return F.linear(x, weight, bias)


def mask(module: nn.Module, point: MaskPoint, gating: Gating, group: str) -> None:
    """Let the decisions about a group act at one of its mask points, in place."""
    own = module.__dict__.get("forward")
    if point.side == "output":
        module.register_forward_hook(OutputMask(gating, group, point))
    elif type(module) is nn.Linear and point.axis == -1 and (own is None or isinstance(own, MaskedLinear)):
        if own is None:
            own = module.__dict__["forward"] = MaskedLinear(module, gating)
        own.masks.append(GroupMask(gating, group, point))
    else:
        module.register_forward_pre_hook(GroupMask(gating, group, point))
