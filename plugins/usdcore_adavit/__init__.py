"""AdaViT (Meng et al., CVPR 2022): each image uses its own patch tokens, heads and layers. Registers `adavit`."""

from __future__ import annotations

from typing import TYPE_CHECKING

from usdcore.hooks import hookimpl
from usdcore_adavit.config import AdaViTConfig

if TYPE_CHECKING:
    from usdcore.hooks import Register


@hookimpl
def usdcore_register(register: Register) -> None:
    """Offer the strategy."""
    register.strategy(
        name="adavit",
        config=AdaViTConfig,
        implementation="usdcore_adavit.strategy:AdaViT",
        summary="learns which tokens, heads and layers each image uses, block by block (AdaViT)",
    )
