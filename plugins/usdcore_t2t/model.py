"""T2T-ViT: the tokens-to-token module in front of a plain transformer with a class token.

After Yuan et al., "Tokens-to-Token ViT: Training Vision Transformers from Scratch on ImageNet" (ICCV 2021), with
Performer layers in the module. Importing this module makes timm know the models.
"""

from __future__ import annotations

from typing import Any

import torch
from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from timm.layers import to_2tuple, trunc_normal_
from timm.models import build_model_with_cfg, generate_default_cfgs, register_model
from timm.models.vision_transformer import Block
from torch import Tensor, nn

from usdcore_t2t.published import rename
from usdcore_t2t.tokens import TokensToToken

__all__ = ["T2TViT", "t2t_vit_14", "t2t_vit_19"]


def sinusoids(length: int, width: int) -> Tensor:
    """Fixed positions [1, length, width]: sines in even columns, cosines in odd ones, wavelengths 2 pi to 20000 pi."""
    column = torch.arange(width, dtype=torch.float64)
    rate = 10_000.0 ** (-2 * (column // 2) / width)
    angle = torch.arange(length, dtype=torch.float64).unsqueeze(1) * rate
    return torch.where(column % 2 == 0, angle.sin(), angle.cos()).float().unsqueeze(0)


class T2TViT(nn.Module):
    """Images [B, in_chans, H, W] to logits [B, num_classes], by the class token. Loads the authors' checkpoints too.

    Args:
        img_size: side of the image, or height and width; the table of positions is made for it.
        in_chans: channels of an image.
        num_classes: 0 leaves the features.
        embed_dim: width of the transformer.
        depth: its layers.
        num_heads: heads of each; `embed_dim` must be a multiple.
        mlp_ratio: hidden width of each feed-forward part over `embed_dim`.
        qkv_bias: whether queries, keys and values have one.
        token_dim: width of the tokens-to-token module.
        num_random_features: of its attention.
        drop_rate: dropout before the classifier.
        pos_drop_rate: dropout after the positions are added.
        proj_drop_rate: dropout after each projection of the transformer.
        attn_drop_rate: dropout of its attention.
        drop_path_rate: stochastic depth of the last layer, rising linearly.
        token_drop_rate: dropout in the tokens-to-token module; the published models were trained with 0.1.
    """

    def __init__(
        self,
        img_size: int | tuple[int, int] = 224,
        in_chans: int = 3,
        num_classes: int = 1000,
        embed_dim: int = 384,
        depth: int = 14,
        num_heads: int = 6,
        mlp_ratio: float = 3.0,
        qkv_bias: bool = False,
        token_dim: int = 64,
        num_random_features: int = 32,
        drop_rate: float = 0.0,
        pos_drop_rate: float = 0.0,
        proj_drop_rate: float = 0.0,
        attn_drop_rate: float = 0.0,
        drop_path_rate: float = 0.0,
        token_drop_rate: float = 0.1,
    ) -> None:
        super().__init__()
        self.num_classes = num_classes
        self.img_size: tuple[int, int] = to_2tuple(img_size)
        self.num_features = self.head_hidden_size = self.embed_dim = embed_dim
        self.tokens = TokensToToken(self.img_size, in_chans, token_dim, embed_dim, num_random_features, token_drop_rate)
        self.num_prefix_tokens = 1
        self.cls_token = nn.Parameter(torch.zeros(1, 1, embed_dim))
        # Not trained, but a parameter: saved and counted with the weights, as in the published sizes.
        positions = sinusoids(self.tokens.num_tokens + 1, embed_dim)
        self.pos_embed = nn.Parameter(positions, requires_grad=False)
        self.pos_drop = nn.Dropout(pos_drop_rate)
        rates = [drop_path_rate * place / max(depth - 1, 1) for place in range(depth)]
        self.blocks = nn.Sequential(
            *(
                Block(
                    embed_dim,
                    num_heads,
                    mlp_ratio,
                    qkv_bias=qkv_bias,
                    proj_drop=proj_drop_rate,
                    attn_drop=attn_drop_rate,
                    drop_path=rate,
                    norm_layer=nn.LayerNorm,
                )
                for rate in rates
            )
        )
        self.norm = nn.LayerNorm(embed_dim)
        self.head_drop = nn.Dropout(drop_rate)
        self.head = nn.Linear(embed_dim, num_classes) if num_classes > 0 else nn.Identity()
        trunc_normal_(self.cls_token, std=0.02)
        self.apply(_initialise)
        self.register_load_state_dict_pre_hook(rename)

    @torch.jit.ignore
    def no_weight_decay(self) -> set[str]:
        """Names of parameters that timm's optimizers leave undecayed."""
        return {"cls_token", "pos_embed"}

    def get_classifier(self) -> nn.Module:
        """The last linear layer."""
        return self.head

    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        """A fresh classifier for so many classes; 0 leaves the features. Errors: a pooling other than the token's."""
        if global_pool not in (None, "token"):
            msg = f"T2T-ViT classifies by its class token; there is no pooling {global_pool!r}"
            raise ValueError(msg)
        self.num_classes = num_classes
        like = self.cls_token
        self.head = nn.Identity()
        if num_classes > 0:
            self.head = nn.Linear(self.embed_dim, num_classes, device=like.device, dtype=like.dtype)
            _initialise(self.head)

    def forward_features(self, x_BCHW: Tensor) -> Tensor:
        """Normalised tokens [B, 1 + N, C], the class token first. Errors: images that are not of `img_size`."""
        if tuple(x_BCHW.shape[-2:]) != self.img_size:
            msg = f"images of {list(x_BCHW.shape[-2:])} were given to a model for {list(self.img_size)}; set img_size"
            raise ValueError(msg)
        x_BNC = self.tokens(x_BCHW)
        x_BNC = torch.cat([self.cls_token.expand(len(x_BNC), -1, -1), x_BNC], dim=1)
        return self.norm(self.blocks(self.pos_drop(x_BNC + self.pos_embed)))

    def forward_head(self, x_BNC: Tensor, pre_logits: bool = False) -> Tensor:
        """Logits [B, num_classes] of the class token, or its features [B, C]."""
        x_BC = self.head_drop(x_BNC[:, 0])
        return x_BC if pre_logits else self.head(x_BC)

    def forward(self, x_BCHW: Tensor) -> Tensor:
        """Logits [B, num_classes]."""
        return self.forward_head(self.forward_features(x_BCHW))


def _initialise(module: nn.Module) -> None:
    if isinstance(module, nn.Linear):
        trunc_normal_(module.weight, std=0.02)
        if module.bias is not None:
            nn.init.zeros_(module.bias)


_UNTRAINED: dict[str, Any] = {
    "num_classes": 1000,
    "input_size": (3, 224, 224),
    "pool_size": None,
    "crop_pct": 0.9,
    "interpolation": "bicubic",
    "fixed_input_size": True,
    "mean": IMAGENET_DEFAULT_MEAN,
    "std": IMAGENET_DEFAULT_STD,
    "first_conv": None,
    "classifier": "head",
}

default_cfgs = generate_default_cfgs({"t2t_vit_14.untrained": _UNTRAINED, "t2t_vit_19.untrained": _UNTRAINED})


def _make(name: str, pretrained: bool, architecture: dict[str, Any], given: dict[str, Any]) -> T2TViT:
    made: T2TViT = build_model_with_cfg(T2TViT, name, pretrained, **{**architecture, **given})
    return made


@register_model
def t2t_vit_14(pretrained: bool = False, **kwargs: Any) -> T2TViT:
    """T2T-ViT-14: 21.5 M parameters, 4.8 GMACs, published top-1 on ImageNet 81.5."""
    return _make("t2t_vit_14", pretrained, {"embed_dim": 384, "depth": 14, "num_heads": 6}, kwargs)


@register_model
def t2t_vit_19(pretrained: bool = False, **kwargs: Any) -> T2TViT:
    """T2T-ViT-19: 39.2 M parameters, 8.5 GMACs, published top-1 on ImageNet 81.9."""
    return _make("t2t_vit_19", pretrained, {"embed_dim": 448, "depth": 19, "num_heads": 7}, kwargs)
