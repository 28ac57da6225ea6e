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

from usdcore.errors import UsdcoreError

if TYPE_CHECKING:
    from collections.abc import Callable

SOFTMAX = frozenset({F.softmax, torch.softmax, Tensor.softmax, torch.special.softmax})
#: Below this share of a softmax, what is left of it no longer tells what to keep. Published code has 1e-6, with which
#: few images, whose attention is all on what they drop, decide each step: tried, this met its ratio soonest.
SMALL = 0.1
PRODUCTS = frozenset({torch.matmul, Tensor.matmul, Tensor.__matmul__, torch.bmm, Tensor.bmm})
CAUGHT = SOFTMAX | PRODUCTS | {F.scaled_dot_product_attention}


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
    then, [B or 1, 1 or H, 1 or N, N]. Its keys [B, H, N, d], or as the host holds them, are handed to `see`, and what
    the first token looks at, [B, H, N], to `see_row`. Where `pairs` gives [B, H], only those pairs of image and head
    are computed, and the others' outputs are 0.
    """

    def __init__(
        self,
        num_tokens: int,
        factor: Callable[[], Tensor | None],
        see: Callable[[Tensor], None] | None = None,
        pairs: Callable[[], Tensor | None] = lambda: None,
        see_row: Callable[[Tensor], None] | None = None,
    ) -> None:
        super().__init__()
        self.see_row = see_row
        self.pairs = pairs
        self.caught = False  # whether anything was computed for some pairs alone
        self.num_tokens = num_tokens
        self.factor = factor
        self.see = see
        self.last: Tensor | None = None  # what the last product over the tokens was with: keys, if a softmax follows

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """The function's result, weighed anew where it is an attention's."""
        given = kwargs or {}
        if func not in CAUGHT:
            return func(*args, **given)
        if func is F.scaled_dot_product_attention or func in PRODUCTS:
            pairs = self.pairs()
            if pairs is not None and all(x.ndim == 4 and x.shape[:2] == pairs.shape for x in args[:3]):
                self.caught = True
                return self._seen(func, args, self._for_pairs(pairs, func, args, given))
        if func is F.scaled_dot_product_attention:
            return self._attention(self.factor(), *args, **given)
        out = func(*args, **given)
        if func in SOFTMAX and self._is_square(out):
            self._show()
            factor = self.factor()
            out = out if factor is None else weighed(out, factor)
            if self.see_row is not None:
                self.see_row(out[..., 0, :])
            return out
        return self._seen(func, args, out)

    def _for_pairs(
        self, pairs: Tensor, func: Callable[..., Any], args: tuple[Any, ...], given: dict[str, Any]
    ) -> Tensor:
        """A product or an attention over [B, H, ...] for some pairs of image and head: [P, 1, ...], each as an image of
        one head.
        """

        def own(x: Tensor | None) -> Tensor | None:
            return None if x is None else x.expand(*pairs.shape, *x.shape[-2:])[pairs][:, None]

        if func is F.scaled_dot_product_attention:
            mask = own(args[3] if len(args) > 3 else given.pop("attn_mask", None))
            q, k, v = (x[pairs][:, None] for x in args[:3])
            out = self._attention(own(self.factor()), q, k, v, mask, *args[4:], **given)
            if self.see is not None:
                self.see(args[1])
        else:
            out = func(*map(own, args))
        whole: Tensor = out.new_zeros(*pairs.shape, *out.shape[2:])
        whole[pairs] = out[:, 0]
        return whole

    def _is_square(self, x: Tensor) -> bool:
        return x.ndim >= 3 and x.shape[-1] == x.shape[-2] == self.num_tokens

    def _seen(self, func: Callable[..., Any], args: tuple[Any, ...], out: Any) -> Any:
        """The result of a function; what it was a product with is noted, if it is one over the tokens."""
        if self.see is not None and func in PRODUCTS and self._is_square(out):
            self.last = args[1].transpose(-2, -1)
        return out

    def _show(self) -> None:
        """Hand over the keys of a product that a softmax follows: those of the product with the values are none."""
        if self.see is None:
            return
        if self.last is None:
            msg = "its attention's keys can't be told, as no matrix product of queries and keys is met before a softmax"
            raise UsdcoreError(msg)
        self.see(self.last)
        self.last = None

    def _attention(
        self,
        factor: Tensor | None,
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
        if self.see is not None:
            self.see(key)
        if self.see_row is not None:
            self.see_row(_first_row(factor, query, key, attn_mask, scale))
        if factor is None or is_causal or enable_gqa:  # with these two, what it gives shows that it was not met
            return F.scaled_dot_product_attention(query, key, value, attn_mask, **rest)  # type: ignore[arg-type]
        mask = None if attn_mask is None else _additive(attn_mask, query.dtype)
        factor = _placed(factor, query)
        if not factor.requires_grad:
            own = factor.log().to(query.dtype)
            both = own if mask is None else own + mask
            return F.scaled_dot_product_attention(query, key, value, both, **rest)  # type: ignore[arg-type]
        logits = query @ key.transpose(-2, -1) * (query.shape[-1] ** -0.5 if scale is None else scale)
        weights = weighed((logits if mask is None else logits + mask).softmax(-1, dtype=torch.float32), factor)
        return F.dropout(weights.to(value.dtype), dropout_p, training=dropout_p > 0) @ value


def _first_row(
    factor: Tensor | None, query: Tensor, key: Tensor, attn_mask: Tensor | None, scale: float | None
) -> Tensor:
    """What the first query looks at, [..., N]; without a product of matrices, as it is one part in N of the core's."""
    logits = (query[..., :1, :] * key).sum(-1) * (query.shape[-1] ** -0.5 if scale is None else scale)
    if attn_mask is not None:
        logits = logits + _additive(attn_mask, query.dtype)[..., 0, :]
    row = logits.softmax(-1)
    return row if factor is None else weighed(row[..., None, :], _placed(factor, query)[..., :1, :])[..., 0, :]


def weighed(probabilities: Tensor, factor: Tensor) -> Tensor:
    """The softmax [..., N, N] with its terms multiplied by a factor: p f / sum(p f), as if exp(logit) had been.

    Where less than `SMALL` of the softmax is left, the factor's gradient is smaller by sum / `SMALL`: it would be
    without bound. Published code has such a number in the forward; here that stays what evaluation gives.
    """
    factor = _placed(factor, probabilities).to(probabilities.dtype)
    factor = factor.expand_as(probabilities) if factor.requires_grad else factor
    terms = probabilities * factor
    total = terms.sum(-1, keepdim=True)
    if factor.requires_grad:
        share = (total.detach() / SMALL).clamp(max=1)
        factor.register_hook(lambda gradient: gradient * share)  # type: ignore[no-untyped-call]
    return terms / total.clamp(min=torch.finfo(total.dtype).tiny)


def _placed(factor: Tensor, x: Tensor) -> Tensor:
    """A factor [B, ...] for x [B, H, ...], or [B * H, ...] where heads lie along the first axis with the images."""
    if x.ndim != 3 or factor.ndim != 4:
        return factor
    factor = factor[:, 0]
    if len(factor) > 1 and len(x) > len(factor):
        factor = factor.repeat_interleave(len(x) // len(factor), dim=0)
    return factor


def _additive(mask: Tensor, dtype: torch.dtype) -> Tensor:
    """Of a boolean mask, True takes part."""
    if mask.dtype != torch.bool:
        return mask
    return torch.zeros_like(mask, dtype=dtype).masked_fill(~mask, float("-inf"))
