"""Leave out, merge or replace tokens of the stream.

A strategy acts on tokens by a gate at the site `BLOCK:tokens` or `BRANCH:tokens`:

* It **selects** by a `TokenDraw`: the tokens that are off pass the block, or the branch, by. In training all are
  computed, and those that are off are no keys of the others; in evaluation they are not computed. A token that is
  dropped for good is off in all blocks that follow.
* It **reduces** by a `Reducer`: from there on there are fewer tokens, in training too.

What a block costs for n tokens is priced exactly (`prices`), and whether it may be given fewer is tried: leaving tokens
out must be the same as masking them (`check`).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from usdcore.errors import UsdcoreError

if TYPE_CHECKING:
    from torch import nn

    from usdcore.units.types import BlockUnit


def prefix_tokens(model: nn.Module, block: BlockUnit) -> int:
    """How many tokens at the front of a block's stream stand for no place of the image: class, distillation and
    register tokens. From the number of patches where the model tells it (a class token may come late), else from timm's
    `num_prefix_tokens`. Errors: neither is there, or the stream is no sequence of tokens.
    """
    if block.num_tokens is None:
        msg = f"{block.name}: its stream is no sequence of tokens [B, N, C]"
        raise UsdcoreError(msg)
    patches = getattr(getattr(model, "patch_embed", None), "num_patches", None)
    if isinstance(patches, int) and 0 <= block.num_tokens - patches < 64:
        return block.num_tokens - patches
    prefix = getattr(model, "num_prefix_tokens", None)
    if isinstance(prefix, int):
        return prefix
    msg = (
        f"{block.name}: the model does not tell how many of its tokens are class or register tokens: set its attribute "
    )
    raise UsdcoreError(msg + "num_prefix_tokens")
