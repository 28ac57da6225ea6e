"""Data sources: scikit-learn's digits, for trying things out, and everything that timm can open with random access."""

from __future__ import annotations

from usdcore.hooks import Register, hookimpl

from .config import DigitsConfig, TimmConfig


@hookimpl
def usdcore_register(register: Register) -> None:
    """Register the data sources."""
    register.data_source(
        name="digits",
        config=DigitsConfig,
        implementation="usdcore_data.digits:Digits",
        summary="scikit-learn's handwritten digits, 8x8 grey, no download",
    )
    register.data_source(
        name="timm",
        config=TimmConfig,
        implementation="usdcore_data.folders:TimmData",
        summary="image folders, torchvision and Hugging Face data sets through timm",
    )
