"""Many small tensors as few large ones, for what travels between processes; and what travels with every step."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from usdcore.engine.processes import Processes

#: Entries in a bucket, unless one tensor has more: 64 MiB in float32.
SIZE = 2**24


def buckets(tensors: Sequence[Tensor]) -> Iterator[list[int]]:
    """Places of tensors that travel together: of one dtype and device, `SIZE` entries at most, in order."""
    kinds: dict[tuple[torch.dtype, torch.device], list[int]] = {}
    for place, tensor in enumerate(tensors):
        kinds.setdefault((tensor.dtype, tensor.device), []).append(place)
    for places in kinds.values():
        bucket: list[int] = []
        entries = 0
        for place in places:
            if bucket and entries + tensors[place].numel() > SIZE:
                yield bucket
                bucket, entries = [], 0
            bucket.append(place)
            entries += tensors[place].numel()
        yield bucket


def average_step(
    processes: Processes, model: nn.Module, parameters: Sequence[nn.Parameter], terms: Mapping[str, Tensor]
) -> dict[str, Tensor]:
    """After backward: gradients and BatchNorm's running statistics become their means over processes; returns those
    of the loss terms (shape []).

    A parameter that has a gradient in some process gets one in all; one that has none anywhere is left without.
    """
    has = [parameter.grad is not None for parameter in parameters]
    values = torch.stack([term.detach().float() for term in terms.values()])
    flags = torch.tensor(has, dtype=values.dtype).to(values.device, non_blocking=True)
    gradients = [torch.zeros_like(p) if p.grad is None else p.grad for p in parameters]
    statistics = running_statistics(model)
    line, *found = processes.means([torch.cat([values, flags]), *gradients, *statistics])
    values, flags = torch.split(line, [len(values), len(flags)])
    # Whoever has every gradient need not look, and an accelerator's host not wait.
    anywhere = has if all(has) else [flag > 0 for flag in flags.tolist()]
    for parameter, gradient, is_there in zip(parameters, found, anywhere, strict=False):
        parameter.grad = gradient if is_there else None
    for statistic, mean in zip(statistics, found[len(parameters) :], strict=True):
        statistic.copy_(mean)
    return dict(zip(terms, values.unbind(), strict=True))


def running_statistics(model: nn.Module) -> list[Tensor]:
    """The running means and variances of every BatchNorm: what training changes in a model beside its parameters."""
    found = []
    for module in model.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            found += [t for t in (module.running_mean, module.running_var) if t is not None]
    return found
