"""A short text that stands for a state: cheap, on the device that its tensors are on."""

from __future__ import annotations

import hashlib
import json
from typing import Any

import torch
from torch import Tensor

_BITS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


def digest(state: Any) -> str:
    """sha256 (hex) over a tree of dicts, lists, tensors, numbers, strings and None.

    Of a tensor it has shape, type and two sums over its bits, one of them weighted by place: tensors that differ by
    accident differ in these. What they are compared for is not an attack.
    """
    sums: list[Tensor] = []
    text = json.dumps(_plain(state, sums), sort_keys=True)
    values = torch.stack([part.cpu() for part in sums]).tolist() if sums else []
    return hashlib.sha256(json.dumps([text, values]).encode()).hexdigest()


def _plain(value: Any, sums: list[Tensor]) -> Any:
    if isinstance(value, Tensor):
        bits = value.detach().contiguous().view(-1)
        if value.dtype is not torch.bool:
            bits = bits.view(_BITS[value.element_size()])
        places = torch.arange(len(bits), device=bits.device) % 8191 + 1
        sums.append(torch.stack([bits.sum(dtype=torch.int64), (bits.long() * places).sum()]))
        return [str(value.dtype), list(value.shape)]
    if isinstance(value, dict):
        return {str(key): _plain(item, sums) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item, sums) for item in value]
    return value
