"""Attention heads whose value paths differ in width, in a host whose code knows one width for all of them.

The linear module that makes the values computes only those that are left, and puts those of each head at the first of
the head's positions, zeros after them; the one that reads the attention's output takes them from there. So the host's
own reshapes, and one fused attention for all heads, go on as they were; what is saved is the rows of the one weight and
the columns of the other. (Values narrower than queries and keys make torch's fused attention slower on a CPU than
zeros in their place do.)

A **layout** has one number for each position of the full width: the channel of the narrow weight that lies there, or
-1. Channels move as slices and one `torch.cat`; gathering them by index takes several times as long on a CPU. Shape
legend: ... any leading axes, F full width, S channels that are left, H heads.
"""

from __future__ import annotations

from itertools import pairwise
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy.typing as npt

    IntArray = npt.NDArray[np.int64]
    BoolArray = npt.NDArray[np.bool_]

Layout = tuple[int, ...]
Runs = tuple[tuple[int, int], ...]  # start and length; a start of -1 stands for zeros

# In a recording without data the two moves are one op each, so that what they do to channels can be told.
torch.library.define("usdcore::ragged_place", "(Tensor x, int[] layout) -> Tensor")
torch.library.define("usdcore::ragged_pack", "(Tensor x, int[] positions) -> Tensor")


def _resized(x: Tensor, layout: Sequence[int]) -> Tensor:
    return x.new_empty(*x.shape[:-1], len(layout))


for _name in ("ragged_place", "ragged_pack"):
    torch.library.impl(f"usdcore::{_name}", "Meta", _resized)


class RaggedWriter(nn.Linear):
    """A linear map of which only some output channels are computed; the others are zeros. x [..., C] to [..., F]."""

    layout: Layout
    runs: Runs

    def forward(self, x: Tensor) -> Tensor:
        """The host's `nn.Linear`, with zeros for the outputs that were removed."""
        if _is_recorded(x):
            placed: Tensor = torch.ops.usdcore.ragged_place(F.linear(x, self.weight, self.bias), self.layout)
            return placed
        return torch.cat(_pieces(F.linear(x, self.weight, self.bias), self.runs), -1)

    def extra_repr(self) -> str:
        """As `nn.Linear`, and how many channels are computed."""
        return f"{super().extra_repr()}, computed={len(self.weight)}"


class RaggedReader(nn.Linear):
    """A linear map that reads only some positions of its input. x [..., F] to [..., C]."""

    layout: Layout
    runs: Runs

    def forward(self, x: Tensor) -> Tensor:
        """The host's `nn.Linear`, as if its input were zero at the positions that were removed."""
        if _is_recorded(x):
            packed = torch.ops.usdcore.ragged_pack(x, _positions(self.layout))
        else:
            packed = torch.cat(_pieces(x, self.runs), -1)
        return F.linear(packed, self.weight, self.bias)

    def extra_repr(self) -> str:
        """As `nn.Linear`, and how many positions are read."""
        return f"{super().extra_repr()}, read={self.weight.shape[1]}"


#: The modules whose forward is known to be a linear map of their stored weight.
LINEARS = frozenset({nn.Linear, RaggedWriter, RaggedReader})


def layout_of(module: nn.Module, width: int) -> Layout:
    """The layout of a ragged module; that of a plain one with `width` positions has each channel at its own."""
    return module.layout if isinstance(module, RaggedWriter | RaggedReader) else tuple(range(width))


def lay_out(module: nn.Linear, layout: Layout, kind: type[RaggedWriter | RaggedReader]) -> None:
    """Give a linear module a layout, in place: names, hooks and places that share the module stay as they are.

    Its weight has the narrow shape already. To its host it stays as wide as the layout, `in_features` and
    `out_features` included. A layout without gaps makes it a plain linear module again.
    """
    state = module.__dict__
    if layout == tuple(range(len(layout))):
        module.__class__ = nn.Linear
        state.pop("layout", None)
        state.pop("runs", None)
        return
    module.__class__ = kind
    state["layout"] = layout
    state["runs"] = _runs(layout if kind is RaggedWriter else _positions(layout))
    state["out_features" if kind is RaggedWriter else "in_features"] = len(layout)


def relaid(layout: Layout, table: IntArray, parents: BoolArray, stays: BoolArray) -> Layout:
    """The layout of what is left when only the channels `stays` [S] do, and the positions of the heads `parents` [H].

    `table` [H, slots] has the positions of each head; its channels move to the first of them, in order.
    """
    full = np.asarray(layout, dtype=np.int64)
    left = np.append(np.where(stays, np.cumsum(stays) - 1, -1), -1)[full]
    is_open = np.isin(np.arange(len(full)), table[parents])
    is_open |= ~np.isin(np.arange(len(full)), table) & ((left >= 0) | (full < 0))
    for own in table[parents]:
        kept = left[own][left[own] >= 0]
        left[own] = -1
        left[own[: len(kept)]] = kept
    return tuple(left[is_open].tolist())


def _positions(layout: Layout) -> list[int]:
    """The position of each channel, in the order of the channels."""
    found = sorted((channel, position) for position, channel in enumerate(layout) if channel >= 0)
    return [position for _, position in found]


def _runs(sources: Sequence[int]) -> Runs:
    """The same as few slices: a run goes on while sources follow each other, or stay -1."""
    breaks = [i for i, (a, b) in enumerate(pairwise(sources), 1) if b != (a + 1 if a >= 0 else -1)]
    return tuple((sources[start], end - start) for start, end in pairwise([0, *breaks, len(sources)]))


def _pieces(x: Tensor, runs: Runs) -> list[Tensor]:
    zero = x.new_zeros(())
    return [zero.expand(*x.shape[:-1], length) if start < 0 else x.narrow(-1, start, length) for start, length in runs]


def _is_recorded(x: Tensor) -> bool:
    return x.is_meta and torch.is_inference_mode_enabled()
