"""DynamicViT's own loss terms as functions of tensors (Eq. 12 to 15). Lower precision is computed in float32.

Shape legend: B batch, M patch tokens, C channels, K classes.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor

from usdcore.strategy import unchanged

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence


def ratio_loss(kept: Sequence[Tensor], ratios: Sequence[float]) -> Tensor:
    """The mean over places and images of (kept share of its patches - the place's ratio)^2; `kept` are [B, M]."""
    gaps = [(_wide(own).mean(1) - ratio).square().mean() for own, ratio in zip(kept, ratios, strict=True)]
    return torch.stack(gaps).mean()


def kl_loss(student_BK: Tensor, teacher_BK: Tensor) -> Tensor:
    """KL(teacher || student) of the classes' probabilities, the mean over images."""
    log_student, log_teacher = (F.log_softmax(_wide(x), dim=-1) for x in (student_BK, teacher_BK))
    return F.kl_div(log_student, log_teacher, reduction="batchmean", log_target=True)


def token_loss(
    student_BMC: Tensor, teacher_BMC: Tensor, kept_BM: Tensor, mean: Callable[[Tensor], Tensor] = unchanged
) -> Tensor:
    """Mean squared difference over the channels of the tokens that are kept; 0 where none is.

    `kept_BM` says which, and gets no gradient. `mean` is over the processes that share a batch: each divides by what is
    kept in all of them.
    """
    kept = _wide(kept_BM.detach())
    squares = (_wide(student_BMC) - _wide(teacher_BMC)).square().mean(-1)
    return (squares * kept).sum() / mean(kept.sum()).clamp(min=1.0)


def _wide(x: Tensor) -> Tensor:
    return x.to(torch.promote_types(x.dtype, torch.float32))
