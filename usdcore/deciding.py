"""What gates that read the stream do alike: pool its tokens, and decide by a threshold in evaluation.

In a forward that skips, a gate stands between branches that have just streamed their weights through the caches, and
for one image the first use of an operation there costs more than what it computes: so these take few operations.

Shape legend: B batch, N tokens, C width of the stream, S decisions.
"""

from __future__ import annotations

from functools import lru_cache
from typing import TYPE_CHECKING

import torch

from usdcore.gates import Draw

if TYPE_CHECKING:
    from torch import Tensor

    from usdcore.gates import ForwardState, Scope


_PRECISE = (torch.float32, torch.float64)
"""In fewer digits the share of a token is rounded too far."""


def pooled(x_BNC: Tensor, state: ForwardState) -> Tensor:
    """The mean over all tokens, [B, C]."""
    if len(x_BNC) != 1 or not _is_read(x_BNC, state) or x_BNC.device.type != "cpu" or x_BNC.dtype not in _PRECISE:
        return x_BNC.mean(dim=1)
    return torch.mv(x_BNC[0].t(), _shares(x_BNC.shape[1], x_BNC.device, x_BNC.dtype))[None]


def decided(logits_BS: Tensor, threshold: float, scope: Scope, state: ForwardState) -> list[Draw]:
    """The draw of each column S in evaluation: on, exactly 1, where a logit is above the threshold, else exactly 0.

    With the scope "batch" the mean over the batch decides for all of it (keep []), else each image for itself (keep
    [B]). A forward that skips fetches the decisions of all columns at once. One that masks fetches nothing, so that it
    can be exported.
    """
    is_shared = scope == "batch"
    if is_shared and len(logits_BS) != 1:
        logits_BS = logits_BS.mean(dim=0, keepdim=True)
    if not _is_read(logits_BS, state):
        keep_BS = (logits_BS > threshold).to(logits_BS.dtype)
        return [Draw(keep) for keep in (keep_BS[0] if is_shared else keep_BS).unbind(-1)]
    if len(logits_BS) != 1:
        on_BS = logits_BS > threshold
        keeps = on_BS.to(logits_BS.dtype).unbind(-1)
        return [Draw(keep, on=tuple(on)) for keep, on in zip(keeps, on_BS.t().tolist(), strict=True)]
    # One row: the few numbers are compared here, in the precision of the logits, and its keeps are at hand already.
    level = _rounded(float(threshold), logits_BS.dtype)
    found: list[Draw] = []
    for logit in logits_BS.tolist()[0]:
        on = logit > level
        keep = _keep(on, is_shared, logits_BS.device, logits_BS.dtype)
        found.append(Draw(keep, on=on if is_shared else (on,)))
    return found


@lru_cache(maxsize=1024)
def _rounded(value: float, dtype: torch.dtype) -> float:
    """A number in the precision of a tensor that it is compared with."""
    return torch.tensor(value, dtype=dtype, device="cpu").item()


@lru_cache(maxsize=64)
def _keep(on: bool, is_shared: bool, device: torch.device, dtype: torch.dtype) -> Tensor:
    """A decision as a tensor [] or [1], made once; nobody writes into a keep."""
    with torch.inference_mode(False):
        return torch.full(() if is_shared else (1,), float(on), device=device, dtype=dtype)


@lru_cache(maxsize=64)
def _shares(count: int, device: torch.device, dtype: torch.dtype) -> Tensor:
    """What each of so many tokens weighs in their mean, [N]."""
    with torch.inference_mode(False):
        return torch.full((count,), 1 / count, device=device, dtype=dtype)


def _is_read(tensor: Tensor, state: ForwardState) -> bool:
    """Whether the forward skips, and the tensor holds numbers: one that is traced has none, and what is made from it is
    not to be kept.
    """
    return state.skips and type(tensor) is torch.Tensor and not tensor.is_meta and not torch.compiler.is_compiling()
