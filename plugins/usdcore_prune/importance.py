"""Importances of the entries of a group: pure tensor functions over the slices of parameters that go with each entry.

Shape legend: n entries of a group.
"""

from __future__ import annotations

import zlib
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from usdcore.units.types import Group


@dataclass(frozen=True)
class Slices:
    """One parameter of which each position on `axis` goes with entry `entry_of`; positions of none go with `n`."""

    parameter: nn.Parameter
    axis: int
    entry_of: Tensor

    def sums(self, values: Tensor, n: int) -> Tensor:
        """Sum over each entry's slice of a tensor of the parameter's shape, [n]."""
        others = [d for d in range(values.ndim) if d != self.axis]
        return self._gathered(values.float().sum(dim=others) if others else values.float(), n)

    def powers(self, power: int, n: int) -> Tensor:
        """Sum of |w|^power over each entry's slice of the parameter, [n]; `power` is 1 or 2."""
        values = self.parameter.detach()
        if self.axis == 0 and values.ndim > 1:  # one pass; along other axes torch's norm is slow
            rows = torch.linalg.vector_norm(values.flatten(1), power, 1, dtype=torch.float32)
            return self._gathered(rows**power, n)
        return self.sums(values.abs() if power == 1 else values.square(), n)

    def _gathered(self, per_position: Tensor, n: int) -> Tensor:
        return per_position.new_zeros(n + 1).index_add_(0, self.entry_of, per_position)[:n]


@dataclass(frozen=True)
class Entries:
    """A group with the parameters that go with its entries, and those of them that are scales of a BatchNorm."""

    group: Group
    slices: tuple[Slices, ...]
    scales: tuple[Slices, ...]

    @classmethod
    def of(cls, model: nn.Module, group: Group) -> Entries:
        """Found in the model by the group's members; buffers carry no importance."""
        slices, scales = [], []
        for member in group.members:
            path, _, name = member.tensor.rpartition(".")
            module = model.get_submodule(path)
            parameter = module._parameters.get(name)
            if parameter is None:
                continue
            entry_of = torch.from_numpy(member.entry_of).to(parameter.device)
            found = Slices(parameter, member.axis, torch.where(entry_of < 0, group.size, entry_of))
            slices.append(found)
            if name == "weight" and isinstance(module, nn.modules.batchnorm._BatchNorm):
                scales.append(found)
        return cls(group, tuple(slices), tuple(scales))


@torch.no_grad()
def norms(entries: Entries, power: int) -> Tensor:
    """L1 or L2 norm of all parameters of each entry, [n].

    Source: Li et al., Pruning Filters for Efficient ConvNets (ICLR 2017), sum of |w| of a filter; over all layers that
    a group couples as in Fang et al., DepGraph (CVPR 2023), Sec. 3.4.
    """
    total = torch.zeros(entries.group.size, device=entries.slices[0].parameter.device if entries.slices else None)
    for own in entries.slices:
        total += own.powers(power, entries.group.size)
    return total if power == 1 else total.sqrt()


@torch.no_grad()
def taylor(entries: Entries, power: int) -> Tensor:
    """Sum over the parameters of each entry of |weight * gradient|^power in one step, [n]; without a gradient 0.

    Source: Molchanov et al., Importance Estimation for Neural Network Pruning (CVPR 2019): the squared first-order
    change of the loss without a parameter (g w)^2, summed over those of a structure; power 1 takes |g w| instead.
    """
    trained = [s for s in entries.slices if s.parameter.grad is not None]
    products = ((s.parameter * s.parameter.grad).abs() ** power for s in trained)
    return _over(trained, products, entries.group.size, entries.slices[0].parameter)


@torch.no_grad()
def scales(entries: Entries) -> Tensor:
    """Sum of |gamma| of the BatchNorm channels of each entry, [n].

    Source: Liu et al., Learning Efficient Convolutional Networks through Network Slimming (ICCV 2017).
    """
    return _over(entries.scales, (s.parameter.detach().abs() for s in entries.scales), entries.group.size)


def noise(group: Group, seed: int) -> Tensor:
    """A uniform number for each entry [n]; a function of the seed and the group's name alone."""
    generator = torch.Generator().manual_seed(seed + zlib.crc32(group.name.encode()))
    return torch.rand(group.size, generator=generator)


def normalized(values: Tensor, by: str) -> Tensor:
    """Divided by their mean or largest value, [n]; all zeros stay zeros. DepGraph's normalisation by layer."""
    if by == "none":
        return values
    scale = values.mean() if by == "mean" else values.max()
    return values / scale.clamp(min=torch.finfo(values.dtype).tiny)


def shares_below(values: Tensor, parent_of: Tensor | None) -> Tensor:
    """The share of a group's entries that are worth less, in (0, 1), [n]; within each parent where they lie in some.

    Removing what is below a threshold removes the same share of every group.
    """
    parents = torch.zeros_like(values, dtype=torch.int64) if parent_of is None else parent_of
    shares = torch.zeros_like(values)
    for parent in parents.unique():
        inside = (parents == parent).nonzero().flatten()
        order = values[inside].argsort(stable=True)
        places = torch.arange(len(inside), dtype=values.dtype, device=values.device)
        shares[inside[order]] = (places + 0.5) / len(inside)
    return shares


def _over(slices: Sequence[Slices], values: Iterable[Tensor], n: int, like: Tensor | None = None) -> Tensor:
    device = slices[0].parameter.device if slices else (like.device if like is not None else None)
    total = torch.zeros(n, device=device)
    for one, value in zip(slices, values, strict=True):
        total += one.sums(value, n)
    return total
