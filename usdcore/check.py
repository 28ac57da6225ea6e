"""A gated model with neutral gates must be the host itself, and meet every gate: checked on random images whenever
gates are attached.
"""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from usdcore.errors import UsdcoreError
from usdcore.plans import is_token_site
from usdcore.teachers import primary
from usdcore.tokens.blocks import varied_blocks
from usdcore.tokens.check import require_a_set

if TYPE_CHECKING:
    from collections.abc import Iterator

    from torch import nn

    from usdcore.gates import Gating
    from usdcore.units.types import Units

#: Largest difference of the logits, as a share of their largest value.
TOLERANCE = 1e-5


class PassedBy(UsdcoreError):
    """The model does not come by a gate."""


class NotNeutral(UsdcoreError):
    """Neutral gates change the model's logits."""


@torch.no_grad()
def outputs(model: nn.Module, input_shape: tuple[int, ...], gating: Gating | None = None) -> dict[str, Tensor]:
    """Logits on two random images in evaluation and in training mode; the model and every generator are left as they
    were. Errors: the model does not come by one of the gates.
    """
    reference = next(model.parameters())
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(2, *input_shape, generator=generator).to(reference)
    devices = [reference.device] if reference.device.type == "cuda" else []
    found = {}
    with torch.random.fork_rng(devices=devices), _restored(model):
        for mode in ("evaluation", "training"):
            torch.manual_seed(0)  # dropout and drop-path draw the same in both models
            output = model.train(mode == "training")(images)
            found[mode] = primary(output).double()
            missed = _sites(gating) - gating.state.asked if gating is not None else ()
            if missed:
                msg = f"in {mode} mode this model goes another way than past the gates of {', '.join(sorted(missed))}"
                raise PassedBy(f"{msg}, so they would do nothing there")
    return found


def _sites(gating: Gating) -> set[str]:
    """Where the model must come by: what was drawn, and every token site (neutral gates draw nothing there)."""
    tokens = {site for gate in gating.all() for site in gate.sites if is_token_site(site)}
    return tokens | gating.state.draws.keys()


def require_neutral(
    model: nn.Module, gating: Gating, units: Units, input_shape: tuple[int, ...], host: dict[str, Tensor]
) -> None:
    """Errors: the model under neutral gates gives other logits than `host`, what `outputs` gave before gates were
    attached, or does not come by one of the gates; gates may leave out tokens where that is not the same as masking.
    """
    with _neutral(gating):
        found = outputs(model, input_shape, gating)
        with _restored(model):
            require_a_set(model, varied_blocks(units, gating), input_shape)
    for mode, logits in found.items():
        difference = float((logits - host[mode]).abs().max() / host[mode].abs().max().clamp(min=1e-12))
        if not difference <= TOLERANCE:
            msg = (
                f"in {mode} mode this model's logits change by {difference:.1e} of their maximum with every gate "
                f"neutral, so it can't be gated"
            )
            raise NotNeutral(msg)


@contextmanager
def _neutral(gating: Gating) -> Iterator[None]:
    before = [gate.is_neutral for gate in gating.all()]
    for gate in gating.all():
        gate.neutral()
    try:
        yield
    finally:
        for gate, was in zip(gating.all(), before, strict=True):
            gate.neutral(was)


@contextmanager
def _restored(model: nn.Module) -> Iterator[None]:
    """Training mode updates running statistics: put them, and each module's own mode, back."""
    modes = {module: module.training for module in model.modules()}
    buffers = {name: buffer.clone() for name, buffer in model.named_buffers()}
    try:
        yield
    finally:
        for module, was in modes.items():
            module.training = was
        for name, buffer in model.named_buffers():
            buffer.copy_(buffers[name])
