"""Distillation losses as functions of tensors. Lower precision than float32 is computed in float32.

Shape legend: B batch, K classes, N tokens, C channels.
"""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

Reduction = Literal["batchmean", "batch_classes"]


def soft(student_BK: Tensor, teacher_BK: Tensor, tau: float, reduction: Reduction = "batchmean") -> Tensor:
    """tau^2 * KL(teacher || student) of the softmax at temperature `tau`, shape [].

    Summed over batch and classes, and divided by B (`batchmean`; Hinton et al., 2015) or by B*K (`batch_classes`, as
    UVC's public code does).
    """
    log_student, log_teacher = (F.log_softmax(_wide(x) / tau, dim=-1) for x in (student_BK, teacher_BK))
    total = F.kl_div(log_student, log_teacher, reduction="sum", log_target=True) * tau**2
    return total / (len(student_BK) if reduction == "batchmean" else student_BK.numel())


def hard(student_BK: Tensor, teacher_BK: Tensor) -> Tensor:
    """Mean cross-entropy to the teacher's first choice, shape [] (DeiT, Eq. 3)."""
    return F.cross_entropy(_wide(student_BK), teacher_BK.argmax(dim=-1))


def feature_gap(student_BNC: Tensor, teacher_BNC: Tensor) -> Tensor:
    """Mean squared difference of tokens that are normalised over their channels, shape [].

    It is 2 * (1 - the correlation over the channels), averaged over tokens: no scale of either side matters.
    """
    student, teacher = (F.layer_norm(_wide(x), x.shape[-1:]) for x in (student_BNC, teacher_BNC))
    return F.mse_loss(student, teacher)


def _wide(x: Tensor) -> Tensor:
    return x.to(torch.promote_types(x.dtype, torch.float32))
