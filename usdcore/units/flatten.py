"""The tensors in the arguments or the result of a call; as torch's `tree_leaves`, but fast for plain nests."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves

ATOMS = frozenset({type(None), bool, int, float, complex, str, bytes, torch.dtype, torch.device, torch.layout})


def tensors_in(arguments: Any) -> list[Tensor]:
    """All tensors in nested arguments, in order."""
    found: list[Tensor] = []
    _collect(arguments, found)
    return found


def _collect(arguments: Any, into: list[Tensor]) -> None:
    kind = type(arguments)
    if isinstance(arguments, Tensor):
        into.append(arguments)
    elif kind is tuple or kind is list:
        for a in arguments:
            _collect(a, into)
    elif kind is dict:
        for a in arguments.values():
            _collect(a, into)
    elif kind not in ATOMS:
        into += [t for t in tree_leaves(arguments) if isinstance(t, Tensor)]
