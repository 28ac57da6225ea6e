"""Options of the gate networks. Imports no torch."""

from __future__ import annotations

from pydantic import Field, field_validator

from usdcore.recipe import PluginConfig


class LinearGate(PluginConfig):
    """One linear map; it has no options."""


class PointwiseGate(PluginConfig):
    """One convolution over the pooled vector, taken as a sequence of length 1 and padded to keep that length."""

    kernel: int = Field(default=1, ge=1, le=99)
    """Taps of the convolution, an odd number."""

    @field_validator("kernel")
    @classmethod
    def _odd(cls, kernel: int) -> int:
        if kernel % 2 == 0:
            msg = f"kernel {kernel} is even, so the padded output would be longer than the input: use an odd number"
            raise ValueError(msg)
        return kernel


class TripleGate(PointwiseGate):
    """Kernel 3 (reconstructed): on a sequence of length 1 the outer taps only ever see padding."""

    kernel: int = Field(default=3, ge=1, le=99)
    """Taps of the convolution, an odd number."""


class QuarterGate(PluginConfig):
    """Two linear maps with a norm and a ReLU between them; C/4 is the width at which the paper's counts come out."""

    hidden_ratio: float = Field(default=1 / 4, gt=0, le=8)
    """Hidden width as a fraction of the model's width, rounded to the nearest integer (halves up), at least 1."""


class EighthGate(QuarterGate):
    """Hidden width C/8 (reconstructed)."""

    hidden_ratio: float = Field(default=1 / 8, gt=0, le=8)
    """Hidden width as a fraction of the model's width, rounded to the nearest integer (halves up), at least 1."""


class SixteenthGate(QuarterGate):
    """Hidden width C/16 (reconstructed)."""

    hidden_ratio: float = Field(default=1 / 16, gt=0, le=8)
    """Hidden width as a fraction of the model's width, rounded to the nearest integer (halves up), at least 1."""
