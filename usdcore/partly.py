"""Compute some of a group's entries for some images: heads that are off for an image are not computed for it.

The linear layers that make a group's entries, or read them, run once for each set of entries that the same images have
on; attention runs for the pairs of image and head that are on (see `usdcore.tokens.cores`). This is for groups of few
entries, which lie in linear layers alone; in all others what is off for an image is multiplied by 0, and counts.

Shape legend: B images, n entries of the group, S and R channels that are made and read.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

if TYPE_CHECKING:
    from collections.abc import Iterator

    from usdcore.gates import Gating
    from usdcore.units.types import Group, IntArray

Runs = list[tuple[int, int]]

#: Of a group's entries: each may need products of its own.
MOST = 64


def linears(model: nn.Module, group: Group) -> dict[str, tuple[IntArray, int]] | None:
    """The linear layers of a group, by name, each with the entry of every channel and the axis of the weight on which
    they lie (0 made, 1 read); None where some entries lie elsewhere, or mix.
    """
    found: dict[str, tuple[IntArray, int]] = {}
    if group.size > MOST or group.macs_per_pair or any(point.sample_axis != 0 for point in group.masks):
        return None
    for member in group.members:
        path, _, name = member.tensor.rpartition(".")
        module = model.get_submodule(path)
        if type(module) is not nn.Linear or (path in found and found[path][1] != member.axis):
            return None
        if name == "weight":
            found[path] = member.entry_of, member.axis
    return found


class PartlyForward:
    """The forward of a linear layer that computes a group's entries for those images alone that have them on."""

    def __init__(self, module: nn.Linear, gating: Gating, group: Group, entry_of: IntArray, axis: int) -> None:
        self.module = module
        self.gating = gating
        self.group = group.name
        self.is_all = group.kind != "heads"  # of what the group costs; of heads there is the attention too
        self.axis = axis
        size = int(entry_of.max()) + 1
        self.runs = [_runs(np.flatnonzero(entry_of == entry)) for entry in range(size)]
        self.free = _runs(np.flatnonzero(entry_of < 0))

    def __call__(self, x: Tensor) -> Tensor:
        """As the host's, [B, ..., S] from [B, ..., R]."""
        keep = on_now(self.gating, self.group)
        if keep is not None and len(keep) != len(x):  # its rows are no images: computed whole, and counted so
            self.gating.state.wholly.add(self.group)
            keep = None
        if keep is None:
            return F.linear(x, self.module.weight, self.module.bias)
        if self.is_all:
            self.gating.state.partly.add(self.group)
        return self._made(x, keep) if self.axis == 0 else self._read(x, keep)

    def _made(self, x: Tensor, keep: Tensor) -> Tensor:
        weight, bias = self.module.weight, self.module.bias
        out = x.new_zeros(*x.shape[:-1], len(weight), dtype=torch.result_type(x, weight))
        for rows, runs in self._sets(keep):
            own = F.linear(x[rows], _cut(weight, runs, 0), None if bias is None else _cut(bias, runs, 0)).to(out.dtype)
            done = 0
            for start, length in runs:
                out.narrow(-1, start, length).index_copy_(0, rows, own.narrow(-1, done, length))
                done += length
        return out

    def _read(self, x: Tensor, keep: Tensor) -> Tensor:
        weight, bias = self.module.weight, self.module.bias
        out = x.new_zeros(*x.shape[:-1], len(weight), dtype=torch.result_type(x, weight))
        for rows, runs in self._sets(keep):
            own = torch.cat([x.narrow(-1, *run).index_select(0, rows) for run in runs], -1)
            out.index_add_(0, rows, F.linear(own, _cut(weight, runs, 1)).to(out.dtype))
        return out if bias is None else out + bias

    def _sets(self, keep: Tensor) -> Iterator[tuple[Tensor, Runs]]:
        """Images, and the channels that all of these and no others have on."""
        patterns: dict[tuple[bool, ...], Runs] = {}
        if self.free:
            patterns[(True,) * len(keep)] = self.free
        for entry, on in enumerate(keep.T.tolist()):
            patterns[tuple(on)] = [*patterns.get(tuple(on), ()), *self.runs[entry]]
        for on, runs in patterns.items():
            if any(on):
                yield torch.tensor(on, device=keep.device).nonzero().flatten(), runs


def _runs(channels: IntArray) -> Runs:
    """Start and length of the stretches that channels form."""
    ends = np.flatnonzero(np.diff(channels, append=-2) != 1) + 1
    starts = np.concatenate([[0], ends[:-1]])
    return [(int(channels[a]), int(b - a)) for a, b in zip(starts, ends, strict=True)] if len(channels) else []


def _cut(weight: Tensor, runs: Runs, axis: int) -> Tensor:
    """The channels in some stretches of an axis; a view of a single one."""
    parts = [weight.narrow(axis, *run) for run in runs]
    return parts[0] if len(parts) == 1 else torch.cat(parts, axis)


def on_now(gating: Gating, group: str) -> Tensor | None:
    """Which entries of a group are on for the images that now run [B, n]; None where all are, or all are computed."""
    state = gating.state
    keep = state.factor(group) if gating.skips else None
    if keep is None or keep.ndim != 2 or keep.is_meta:
        return None
    own = (keep if state.rows is None else keep[state.rows]) != 0
    return None if bool(own.all()) else own
