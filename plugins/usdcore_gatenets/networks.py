"""The networks behind G1 to G9.

Each is built as `cls(config, width, outputs)`, maps pooled features [B, C] to logits [B, outputs], and shows

* `head`: its last linear map (`nn.Linear` or `nn.Conv1d`), whose weight has `outputs` rows; the caller may set
  its bias;
* `macs`: multiply-accumulates per sample, what torch's FLOP counter measures (norms and ReLU are not counted);
* `paper_flops`: the paper's count, `2 * in * out + out` summed over the linear maps. The rule is reconstructed: it is
  the one under which all printed totals of USDC come out, and the one of UVC's public code.

Pooling is the caller's and is not counted.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

if TYPE_CHECKING:
    from .config import LinearGate, PointwiseGate, QuarterGate


def _paper_flops(maps: list[tuple[int, int]]) -> int:
    """`2 * in * out + out` over (in, out) pairs."""
    return sum(2 * inputs * outputs + outputs for inputs, outputs in maps)


def _weights(layer: nn.Module, kind: type[nn.Module]) -> dict[str, Tensor | None] | None:
    """The parameters of a layer that is just torch's own, so that its operation can be called with them; None for one
    that was replaced, reparametrised or hooked.

    For one image, to look up a module's members and call it takes longer than to compute.
    """
    is_plain = type(layer) is kind and not layer._forward_hooks and not layer._forward_pre_hooks
    return layer._parameters if is_plain and "weight" in layer._parameters else None


def _linear(layer: nn.Linear, x: Tensor) -> Tensor:
    """What the layer gives."""
    own = _weights(layer, nn.Linear)
    return layer(x) if own is None else F.linear(x, own["weight"], own["bias"])  # type: ignore[arg-type]


class LinearGateNet(nn.Module):
    """FC (G1): one linear map C -> outputs."""

    def __init__(self, config: LinearGate, width: int, outputs: int) -> None:
        super().__init__()
        self.head = nn.Linear(width, outputs)
        self.macs = width * outputs
        self.paper_flops = _paper_flops([(width, outputs)])

    def forward(self, pooled_BC: Tensor) -> Tensor:
        """Logits [B, outputs]."""
        return _linear(self.head, pooled_BC)


class ConvGateNet(nn.Module):
    """Conv1d (G2, G3) over the pooled vector as a sequence of length 1; padding keeps that length.

    With a kernel above 1 the outer taps only meet zeros. They are computed all the same, and FLOP counters count them,
    so `macs` does too: `kernel * C * outputs`.
    """

    def __init__(self, config: PointwiseGate, width: int, outputs: int) -> None:
        super().__init__()
        self.head = nn.Conv1d(width, outputs, config.kernel, padding=config.kernel // 2)
        self.macs = config.kernel * width * outputs
        self.paper_flops = _paper_flops([(config.kernel * width, outputs)])

    def forward(self, pooled_BC: Tensor) -> Tensor:
        """Logits [B, outputs]."""
        return self.head(pooled_BC.unsqueeze(-1)).squeeze(-1)


class _HiddenGateNet(nn.Module):
    """FC + norm + ReLU + FC; the norm acts on the hidden vector."""

    norm_class: ClassVar[type[nn.LayerNorm] | type[nn.BatchNorm1d]]

    def __init__(self, config: QuarterGate, width: int, outputs: int) -> None:
        super().__init__()
        size = max(1, int(width * config.hidden_ratio + 0.5))
        self.hidden = nn.Linear(width, size)
        self.norm = self.norm_class(size)
        self.head = nn.Linear(size, outputs)
        self.macs = width * size + size * outputs
        self.paper_flops = _paper_flops([(width, size), (size, outputs)])

    def forward(self, pooled_BC: Tensor) -> Tensor:
        """Logits [B, outputs]."""
        return _linear(self.head, F.relu(self._normed(_linear(self.hidden, pooled_BC))))

    def _normed(self, hidden_BH: Tensor) -> Tensor:
        return self.norm(hidden_BH)


class LayerNormGateNet(_HiddenGateNet):
    """FC+LN+ReLU+FC (G4, G6, G8)."""

    norm_class = nn.LayerNorm

    def _normed(self, hidden_BH: Tensor) -> Tensor:
        norm = self.norm
        own = _weights(norm, nn.LayerNorm)
        if own is None:
            return norm(hidden_BH)
        return torch.layer_norm(hidden_BH, norm.normalized_shape, own["weight"], own["bias"], norm.eps)


class BatchNormGateNet(_HiddenGateNet):
    """FC+BN+ReLU+FC (G5, G7, G9).

    In training its norm uses the statistics of the whole local batch, whatever the gate groups are, so it needs at
    least 2 samples; in evaluation it uses the running ones.
    """

    norm_class = nn.BatchNorm1d
