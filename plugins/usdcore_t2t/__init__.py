"""T2T-ViT backbones (Yuan et al., ICCV 2021), which timm does not have; USDC and UVC report results on both."""

from __future__ import annotations

from usdcore.hooks import Register, hookimpl


@hookimpl
def usdcore_register(register: Register) -> None:
    """Register the two sizes that the papers compress."""
    for name, size in (("t2t_vit_14", "14 layers of width 384"), ("t2t_vit_19", "19 layers of width 448")):
        register.backbone(
            name=name,
            implementation=f"usdcore_t2t.model:{name}",
            summary=f"T2T-ViT, {size}; no weights come with it",
        )
