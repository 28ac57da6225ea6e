"""The authors' checkpoints name the tokens-to-token module's tensors otherwise; both names can be loaded."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor, nn

_LAYER = re.compile(r"tokens_to_token\.attention([12])\.(.+)")
_PARTS = {"norm1": "attn.norm", "kqv": "attn.kqv", "proj": "attn.proj", "w": "attn.random_features", "norm2": "norm"}


def own_name(name: str) -> str:
    """A tensor's name in our model; one that is ours already stays."""
    if match := _LAYER.fullmatch(name):
        part, dot, rest = match[2].partition(".")
        return f"tokens.layer{match[1]}.{_PARTS.get(part, part)}{dot}{rest}"
    return re.sub(r"^tokens_to_token\.project\.", "tokens.project.", name)


def rename(module: nn.Module, state: dict[str, Tensor], prefix: str, *_: Any) -> None:
    """A pre-hook of `load_state_dict`: renames in place, below `prefix`."""
    for name in [name for name in state if name.startswith(f"{prefix}tokens_to_token.")]:
        state[prefix + own_name(name.removeprefix(prefix))] = state.pop(name)
