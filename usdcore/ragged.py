"""Attention heads whose dims differ in number, in a host whose code knows one width for all of them.

The module that makes queries, keys or values computes only those that are left and puts zeros in the places of the
others; the one that reads the attention's output takes it from where values are left. So the host's own reshapes,
rotary embedding, norms, and one attention for all heads, fused or not, go on as they were; what is saved is the rows of
the one weight and the columns of the other. (Values narrower than queries and keys make torch's fused attention slower
on a CPU than zeros in their place do.)

A **layout** has one number for each position of the full width: the channel of the narrow weight that lies there, or
-1. A few runs of channels move as slices and one `torch.cat`; many, or where a gradient is wanted (each slice's takes a
buffer of the full width), as one indexed copy on two axes, which on a CPU is far faster than on three. Shape legend:
... any leading axes, F full width, S channels that are left, R rows of positions.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from itertools import pairwise
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
from torch import Tensor, nn

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    import numpy.typing as npt

    IntArray = npt.NDArray[np.int64]
    BoolArray = npt.NDArray[np.bool_]

Layout = tuple[int, ...]
Runs = tuple[tuple[int, int], ...]  # start and length; a start of -1 stands for zeros
Way = Literal["made", "read"]

#: With more runs than this a `torch.cat` takes longer than an indexed copy (measured for 8 images in DeiT-Small).
FEW_RUNS = 64

# In a recording without data the two moves are one op each, so that what they do to channels can be told.
torch.library.define("usdcore::ragged_place", "(Tensor x, int[] layout, int axis) -> Tensor")
torch.library.define("usdcore::ragged_pack", "(Tensor x, int[] positions, int axis) -> Tensor")


def _resized(x: Tensor, layout: Sequence[int], axis: int) -> Tensor:
    shape = list(x.shape)
    shape[axis] = len(layout)
    return x.new_empty(shape)


for _name in ("ragged_place", "ragged_pack"):
    torch.library.impl(f"usdcore::{_name}", "Meta", _resized)


@dataclass(frozen=True)
class Gaps:
    """What a module's host sees along `axis` of its output (`made`) or of its first input (`read`): a layout."""

    layout: Layout
    axis: int
    sources: tuple[int, ...]
    runs: Runs

    @classmethod
    def of(cls, layout: Layout, axis: int, way: Way) -> Gaps:
        """The gaps of a layout; `sources` are the positions of the channels, in their order."""
        sources = tuple(_positions(layout))
        return cls(layout, axis, sources, _runs(layout if way == "made" else sources))


class Ragged(nn.Module):
    """Mixed into a host's module of which only some output channels, or columns, are left: to its host it stays as wide
    as it was. `gaps` says where the channels lie.
    """

    gaps: dict[Way, Gaps]

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """The host's own forward, from the positions that are read, with zeros for the channels that were removed."""
        gaps = self.gaps
        if "read" in gaps:
            x = packed(x, gaps["read"], self._buffers[index_name("read")])
        out: Tensor = super().forward(x, *args, **kwargs)
        return placed(out, gaps["made"], self._buffers[index_name("made")]) if "made" in gaps else out

    def extra_repr(self) -> str:
        """As the host's, and how many positions of the full width hold channels."""
        shown = [f"{way}={len(own.sources)} of {len(own.layout)}" for way, own in self.gaps.items()]
        return ", ".join(part for part in (super().extra_repr(), *shown) if part)


def placed(x: Tensor, gaps: Gaps, index: Tensor | None) -> Tensor:
    """Channels [..., S, ...] at their positions [..., F, ...], zeros elsewhere. `index` are their positions [S]."""
    if _is_recorded(x):
        recorded: Tensor = torch.ops.usdcore.ragged_place(x, gaps.layout, gaps.axis)
        return recorded
    if _is_simple(x, gaps):
        return torch.cat(_pieces(x, gaps), gaps.axis)
    assert index is not None
    flat = _flat(x, gaps.axis)
    axis = flat.ndim - 1 if flat is not x else gaps.axis
    shape = list(flat.shape)
    shape[axis] = len(gaps.layout)
    wide = flat.new_zeros(shape).index_copy(axis, index, flat)
    return wide if flat is x else wide.view(*x.shape[:-1], len(gaps.layout))


def packed(x: Tensor, gaps: Gaps, index: Tensor | None) -> Tensor:
    """The inverse: from positions [..., F, ...] the channels [..., S, ...] that lie there."""
    if _is_recorded(x):
        recorded: Tensor = torch.ops.usdcore.ragged_pack(x, gaps.sources, gaps.axis)
        return recorded
    if _is_simple(x, gaps):
        return torch.cat(_pieces(x, gaps), gaps.axis)
    assert index is not None
    flat = _flat(x, gaps.axis)
    if flat is x:
        return x.index_select(gaps.axis, index)
    return flat.index_select(1, index).view(*x.shape[:-1], len(gaps.sources))


def gaps_of(module: nn.Module, way: Way) -> Gaps | None:
    """The gaps of a module; None where it has none."""
    return module.gaps.get(way) if isinstance(module, Ragged) else None


def layout_of(module: nn.Module, way: Way, width: int) -> Layout:
    """The layout of a module; that of one without gaps has each of `width` channels at its own position."""
    gaps = gaps_of(module, way)
    return tuple(range(width)) if gaps is None else gaps.layout


def lay_out(module: nn.Module, way: Way, layout: Layout, axis: int = -1, device: torch.device | str = "cpu") -> None:
    """Give a module on `device` gaps, in place: names, hooks and places that share the module stay as they are.

    Its tensors have the narrow shapes already. A linear module stays as wide as the layout to its host, `in_features`
    and `out_features` included. A layout without gaps makes it the host's own again.
    """
    known = dict(module.gaps) if isinstance(module, Ragged) else {}
    kinds = type(module).__mro__
    base = kinds[kinds.index(Ragged) + 1] if isinstance(module, Ragged) else type(module)
    known.pop(way, None)
    name = index_name(way)
    if name in module._buffers:
        delattr(module, name)
    if layout != tuple(range(len(layout))):
        known[way] = Gaps.of(layout, axis, way)
        module.register_buffer(name, _index(known[way].sources, device), persistent=False)
    module.__dict__["gaps"] = known
    module.__class__ = ragged_class(base) if known else base
    if not known:
        del module.__dict__["gaps"]
    if isinstance(module, nn.Linear):
        full = {way: len(own.layout) for way, own in known.items()}
        module.__dict__["out_features"] = full.get("made", module.weight.shape[0])
        module.__dict__["in_features"] = full.get("read", module.weight.shape[1])


@cache
def ragged_class(kind: type[nn.Module]) -> type[nn.Module]:
    """A host's class with gaps: still an instance of the host's for whoever asks."""
    body = {"__module__": kind.__module__, "__doc__": kind.__doc__, "__qualname__": f"Ragged{kind.__qualname__}"}
    return type(f"Ragged{kind.__name__}", (Ragged, kind), body)


def index_name(way: Way) -> str:
    """The name of the buffer with the positions of the channels; no part of a state dict."""
    return f"usdcore_{way}"


Rows = tuple["IntArray", "BoolArray", bool]


def relaid(layout: Layout, rows: Iterable[Rows], stays: BoolArray) -> Layout:
    """The layout of what is left when only the channels `stays` [S] do.

    `rows` are of each group a table of positions [R, slots], which of its rows stay [R] (the positions of the others
    go with their heads), and whether its channels move to the first positions of their row, in order.
    """
    full = np.asarray(layout, dtype=np.int64)
    left = np.append(np.where(stays, np.cumsum(stays) - 1, -1), -1)[full]
    is_open = (left >= 0) | (full < 0)
    for table, kept_rows, moves in rows:
        is_open[table] = kept_rows[:, None]
        for own in table[kept_rows] if moves else ():
            kept = left[own][left[own] >= 0]
            left[own] = -1
            left[own[: len(kept)]] = kept
    order = left[is_open]
    return tuple(order.tolist())


def _index(sources: Sequence[int], device: torch.device | str) -> Tensor:
    """Real numbers even in a sketch without data: they are known already."""
    return torch.tensor(sources, device="cpu" if torch.device(device).type == "meta" else device)


def _positions(layout: Layout) -> list[int]:
    """The position of each channel, in the order of the channels."""
    found = sorted((channel, position) for position, channel in enumerate(layout) if channel >= 0)
    return [position for _, position in found]


def _runs(sources: Sequence[int]) -> Runs:
    """The same as few slices: a run goes on while sources follow each other, or stay -1."""
    breaks = [i for i, (a, b) in enumerate(pairwise(sources), 1) if b != (a + 1 if a >= 0 else -1)]
    return tuple((sources[start], end - start) for start, end in pairwise([0, *breaks, len(sources)]))


def _pieces(x: Tensor, gaps: Gaps) -> list[Tensor]:
    zero, shape = x.new_zeros(()), list(x.shape)
    pieces = []
    for start, length in gaps.runs:
        shape[gaps.axis] = length
        pieces.append(zero.expand(shape) if start < 0 else x.narrow(gaps.axis, start, length))
    return pieces


def _flat(x: Tensor, axis: int) -> Tensor:
    """[..., S] as [rows, S]; itself where the channels are not on the last of more than two axes."""
    return x.reshape(-1, x.shape[-1]) if axis == -1 and x.ndim > 2 and x.shape[-1] else x


def _is_simple(x: Tensor, gaps: Gaps) -> bool:
    return len(gaps.runs) <= FEW_RUNS and not (torch.is_grad_enabled() and x.requires_grad)


def _is_recorded(x: Tensor) -> bool:
    return x.is_meta and torch.is_inference_mode_enabled()
