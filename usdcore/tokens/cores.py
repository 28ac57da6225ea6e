"""Inside the attention of any host: what its softmax gives can be weighed anew, and its keys looked at.

A host computes attention by `F.scaled_dot_product_attention` or by a softmax of `q @ k^T`, wherever it likes. While
`Cores` is entered, both are caught among the calls of torch's functions, where they are over the stream's tokens: no
family's code is retyped, and no source is needed.

Shape legend: B batch, H heads, N tokens, d width of a head.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

if TYPE_CHECKING:
    from collections.abc import Callable

SOFTMAX = frozenset({F.softmax, torch.softmax, Tensor.softmax, torch.special.softmax})
PRODUCTS = frozenset({torch.matmul, Tensor.matmul, Tensor.__matmul__, torch.bmm, Tensor.bmm})


def key_policy(keep: Tensor, is_outer: bool = False) -> Tensor:
    """Factors [B or 1, 1, N, N] of the softmax's terms where tokens `keep` [B, N] or [N] are keys of all, and every
    token is its own (DynamicViT, Eq. 11, 12); with `is_outer`, tokens left out attend to themselves alone (AdaViT).
    """
    keep = keep.expand(1, -1) if keep.ndim == 1 else keep
    own = torch.eye(keep.shape[-1], dtype=keep.dtype, device=keep.device)
    factor = keep[:, None, :] * keep[:, :, None] if is_outer else keep[:, None, :].expand(-1, keep.shape[-1], -1)
    return (factor + (1 - factor) * own)[:, None]


class Cores(TorchFunctionMode):
    """While entered: attention over `num_tokens` tokens has the terms of its softmax multiplied by what `factor` gives
    then, [B or 1, 1 or H, 1 or N, N]. With `wants_keys` the last keys seen are at `keys`, [B, N, d], mean over heads.
    """

    def __init__(self, num_tokens: int, factor: Callable[[], Tensor | None], wants_keys: bool = False) -> None:
        super().__init__()
        self.num_tokens = num_tokens
        self.factor = factor
        self.wants_keys = wants_keys
        self.keys: Tensor | None = None

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """The function's result, weighed anew where it is an attention's."""
        given = kwargs or {}
        if func is F.scaled_dot_product_attention:
            return self._attention(*args, **given)
        out = func(*args, **given)
        if func in SOFTMAX and self._is_square(out):
            factor = self.factor()
            return out if factor is None else weighed(out, factor)
        if self.wants_keys and func in PRODUCTS and self._is_square(out):
            self._see(args[1].transpose(-2, -1))
        return out

    def _is_square(self, x: Tensor) -> bool:
        return x.ndim >= 3 and x.shape[-1] == x.shape[-2] == self.num_tokens

    def _see(self, k: Tensor) -> None:
        self.keys = k.mean(1) if k.ndim == 4 else k

    def _attention(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        attn_mask: Tensor | None = None,
        dropout_p: float = 0.0,
        is_causal: bool = False,
        scale: float | None = None,
        enable_gqa: bool = False,
    ) -> Tensor:
        rest = {"dropout_p": dropout_p, "is_causal": is_causal, "scale": scale, "enable_gqa": enable_gqa}
        if not query.shape[-2] == key.shape[-2] == self.num_tokens:
            return F.scaled_dot_product_attention(query, key, value, attn_mask, **rest)  # type: ignore[arg-type]
        if self.wants_keys:
            self._see(key)
        factor = self.factor()
        if factor is None or is_causal or enable_gqa:  # with these two, what it gives shows that it was not met
            return F.scaled_dot_product_attention(query, key, value, attn_mask, **rest)  # type: ignore[arg-type]
        mask = None if attn_mask is None else _additive(attn_mask, query.dtype)
        if not factor.requires_grad:
            own = factor.log().to(query.dtype)
            both = own if mask is None else own + mask
            return F.scaled_dot_product_attention(query, key, value, both, **rest)  # type: ignore[arg-type]
        logits = query @ key.transpose(-2, -1) * (query.shape[-1] ** -0.5 if scale is None else scale)
        weights = weighed((logits if mask is None else logits + mask).softmax(-1, dtype=torch.float32), factor)
        return F.dropout(weights.to(value.dtype), dropout_p, training=dropout_p > 0) @ value


def weighed(probabilities: Tensor, factor: Tensor) -> Tensor:
    """The softmax [..., N, N] with its terms multiplied by a factor: p f / sum(p f), as if exp(logit) had been."""
    if probabilities.ndim == 3 and factor.ndim == 4:  # heads, if any, lie along the first axis with the images
        factor = factor[:, 0]
        if len(factor) > 1 and len(probabilities) > len(factor):
            factor = factor.repeat_interleave(len(probabilities) // len(factor), dim=0)
    terms = probabilities * factor.to(probabilities.dtype)
    return terms / terms.sum(-1, keepdim=True)


def _additive(mask: Tensor, dtype: torch.dtype) -> Tensor:
    """Of a boolean mask, True takes part."""
    if mask.dtype != torch.bool:
        return mask
    return torch.zeros_like(mask, dtype=dtype).masked_fill(~mask, float("-inf"))
