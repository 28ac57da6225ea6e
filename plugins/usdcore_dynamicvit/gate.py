"""The gate of one place: its predictor decides which tokens the blocks that follow compute, up to the next place.

Shape legend: B images, N tokens of the stream (P class, distillation and register tokens, then M patches), C its width,
n tokens that are kept.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from usdcore.errors import UsdcoreError
from usdcore.gates import Draw, ForwardState, Gate, TokenDraw
from usdcore.plans import TOKENS
from usdcore_dynamicvit.predictor import Predictor, best, macs_per_token, sampled

if TYPE_CHECKING:
    from collections.abc import Sequence

    from usdcore.gates import Scope


@dataclass(frozen=True)
class Sizes:
    """Of a place: the stream's width and prefix tokens, the patches that its predictor reads, and that it keeps."""

    width: int
    prefix: int
    read: int
    count: int


class PlaceGate(Gate):
    """Drops tokens before block `blocks[0]`, for all of `blocks`. `before` is the first block of the place before it,
    None at the first one: a token that was dropped there is not asked again. In evaluation `count` patches stay, in
    training as many as the predictor draws, which learns to draw the share `ratio` of all.
    """

    scope: Scope = "token"
    has_threshold = False

    def __init__(self, blocks: Sequence[str], before: str | None, sizes: Sizes, ratio: float) -> None:
        super().__init__()
        self.blocks, self.before, self.sizes, self.ratio = tuple(blocks), before, sizes, ratio
        self.prefix, self.count = sizes.prefix, sizes.count
        self.tap = blocks[0]
        self.sites = tuple(name + TOKENS for name in blocks)
        self.fewest_tokens = self.prefix + self.count
        self.predictor = Predictor(sizes.width)
        self.tau = 1.0
        #: Whether it is being learned: else (a loaded model that is trained on) it decides as in evaluation.
        self.is_learning = False
        self.read: Tensor | float = float(sizes.read)  # patches per image that the last draw read

    def draw(self, x_BNC: Tensor | None, state: ForwardState) -> dict[str, Draw]:
        """One decision for all of its blocks. Errors: a stream that has no tokens to decide about."""
        assert x_BNC is not None
        if x_BNC.shape[1] <= self.prefix:
            msg = f"dynamicvit: {self.tap} is given {x_BNC.shape[1]} tokens, the first {self.prefix} of which always"
            raise UsdcoreError(f"{msg} stay; give images of the model's own size, or make the file anew")
        earlier = self._earlier(state)
        draw = self._sampled(x_BNC, earlier) if self.training and self.is_learning else self._best(x_BNC, earlier)
        return dict.fromkeys(self.sites, draw)

    def macs(self) -> Tensor | float:
        """Of the predictor, for the patches that are still there when it is asked."""
        return macs_per_token(self.sizes.width) * self.read

    def _earlier(self, state: ForwardState) -> TokenDraw | None:
        """The decision at the place before, if any was made."""
        draws = state.draws.get(f"{self.before}{TOKENS}")
        earlier = draws[0] if draws else None
        assert earlier is None or isinstance(earlier, TokenDraw)
        return earlier

    def _sampled(self, x_BNC: Tensor, earlier: TokenDraw | None) -> TokenDraw:
        """Training: all patches are computed, so all are scored, and those dropped before stay dropped."""
        patches = x_BNC[:, self.prefix :]
        kept = None if earlier is None else earlier.keep[:, self.prefix :]
        decided = sampled(self.predictor(patches, kept), kept, self.tau)
        self.read = patches.shape[1] if kept is None else kept.detach().sum(1).mean()
        keep = torch.cat([decided.new_ones(decided.shape[0], self.prefix), decided], dim=1)
        # As published, a decision is learned by what a token is worth as a key, not by what the block adds to it.
        return TokenDraw(keep, is_fixed_delta=True)

    def _best(self, x_BNC: Tensor, earlier: TokenDraw | None) -> TokenDraw:
        """Evaluation: the tokens that are left are scored alone, and the best `count` of them stay."""
        before = None if earlier is None or earlier.index is None else earlier.index[:, self.prefix :]
        patches = x_BNC[:, self.prefix :]
        if before is not None:
            patches = x_BNC.gather(1, before[..., None].expand(-1, -1, x_BNC.shape[-1]))
        self.read = float(patches.shape[1])
        chosen = best(self.predictor(patches)[..., 0], self.count)
        own = chosen + self.prefix if before is None else before.gather(1, chosen)
        always = torch.arange(self.prefix, device=own.device).expand(own.shape[0], -1)
        index = torch.cat([always, own], dim=1)
        # In float32 at least, as counts of more than 256 tokens are no numbers of bfloat16.
        exact = torch.promote_types(x_BNC.dtype, torch.float32)
        keep = torch.zeros(x_BNC.shape[:2], dtype=exact, device=x_BNC.device).scatter(1, index, 1.0)
        return TokenDraw(keep, index=index)
