"""`nn.MultiheadAttention` in code that can be followed and cut.

torch's own computes everything in one function that takes the number of heads and the width from the weights' first
shape, and has native shortcuts that call no module. `open_up` gives such a module a class whose forward does the same
with the attributes `num_heads` and `head_dim`, so that it is pruned and gated as any host is. Parameters and names
stay.

Shape legend: B batch, N queries, M keys and values, E width of the input, H heads, d width of a head.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class Multihead(nn.MultiheadAttention):
    """Multi-head attention whose heads and head widths may be fewer than its input is wide."""

    num_heads: int
    head_dim: int

    def forward(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        key_padding_mask: Tensor | None = None,
        need_weights: bool = True,
        attn_mask: Tensor | None = None,
        average_attn_weights: bool = True,
        is_causal: bool = False,
    ) -> tuple[Tensor, Tensor | None]:
        """As `nn.MultiheadAttention`; with `is_causal` alone, later keys are left out."""
        is_batched, is_self = query.ndim == 3, query is key and key is value
        if not is_batched:
            query, key, value = (x.unsqueeze(0) for x in (query, key, value))
        elif not self.batch_first:
            query, key, value = (x.transpose(0, 1) for x in (query, key, value))
        B, N, _ = query.shape
        M = key.shape[1]
        if is_self:
            packed = F.linear(query, self.in_proj_weight, self.in_proj_bias)
            q, k, v = packed.reshape(B, N, 3, self.num_heads, -1).permute(2, 0, 3, 1, 4).unbind(0)
        else:
            weights = self.in_proj_weight.chunk(3)
            biases = (None, None, None) if self.in_proj_bias is None else self.in_proj_bias.chunk(3)
            q = F.linear(query, weights[0], biases[0]).reshape(B, N, self.num_heads, -1).transpose(1, 2)
            k = F.linear(key, weights[1], biases[1]).reshape(B, M, self.num_heads, -1).transpose(1, 2)
            v = F.linear(value, weights[2], biases[2]).reshape(B, M, self.num_heads, -1).transpose(1, 2)
        mask = _mask(attn_mask, key_padding_mask, q)
        dropout = self.dropout if self.training else 0.0
        shared = None
        if need_weights:
            logits = q @ k.transpose(-2, -1) * self.head_dim**-0.5
            probabilities = (logits if mask is None else logits + mask).softmax(-1)
            y = F.dropout(probabilities, dropout) @ v
            shared = probabilities.mean(1) if average_attn_weights else probabilities
        else:
            y = F.scaled_dot_product_attention(q, k, v, mask, dropout, is_causal=is_causal and mask is None)
        out = self.out_proj(y.transpose(1, 2).reshape(B, N, -1))
        if not is_batched:
            return out.squeeze(0), None if shared is None else shared.squeeze(0)
        return (out if self.batch_first else out.transpose(0, 1)), shared


def open_up(model: nn.Module) -> None:
    """Give every `nn.MultiheadAttention` of a model the forward that can be cut, in place.

    Those with keys or values of another width, or with a bias or zeros beside the keys, stay as they are.
    """
    for module in model.modules():
        is_plain = type(module) is nn.MultiheadAttention and module._qkv_same_embed_dim
        if is_plain and module.bias_k is None and not module.add_zero_attn:
            module.__class__ = Multihead
            # torch's encoder layers ask this before they take their native shortcut, which calls no module.
            module.__dict__["_qkv_same_embed_dim"] = False


def _mask(attn_mask: Tensor | None, key_padding_mask: Tensor | None, q: Tensor) -> Tensor | None:
    """What is added to the logits [B, H, N, M]."""
    own = None if attn_mask is None else _additive(attn_mask, q.dtype)
    if own is not None and own.ndim == 3:  # [B * H, N, M]
        own = own.view(q.shape[0], -1, *own.shape[1:])
    if key_padding_mask is None:
        return own
    padding = _additive(key_padding_mask, q.dtype).view(-1, 1, 1, key_padding_mask.shape[-1])
    return padding if own is None else own + padding


def _additive(mask: Tensor, dtype: torch.dtype) -> Tensor:
    """Of a boolean mask, True is left out."""
    if mask.dtype != torch.bool:
        return mask.to(dtype)
    return torch.zeros_like(mask, dtype=dtype).masked_fill(mask, float("-inf"))
