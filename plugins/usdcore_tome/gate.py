"""The gate that merges tokens where they enter a block's FFN.

Shape legend: B images, N tokens, C width of the stream, d width of a head's keys.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from pydantic import BaseModel, ConfigDict, Field, model_validator
from torch import Tensor, nn

from usdcore.errors import UsdcoreError
from usdcore.gates import Reducer
from usdcore_tome.matching import destinations, match, merge
from usdcore_tome.schedule import matching_macs

if TYPE_CHECKING:
    from usdcore.gates import ForwardState

#: The note of a forward that says what its tokens stand for.
NOTE = "tome"


class MergeRecord(BaseModel):
    """What an attach record of this plugin holds: enough to build the gate anew."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    r: int = Field(ge=1, le=1_000_000)
    tokens: int = Field(ge=3, le=10_000_000, description="that enter")
    prefix: int = Field(ge=0, le=1_000_000, description="tokens at the front that are never merged")
    width: int = Field(ge=1, le=1_000_000, description="of a head's keys")
    after: str = Field(min_length=1, max_length=300, description="the attention's branch")
    proportional: bool

    @model_validator(mode="after")
    def _merges_half_at_most(self) -> MergeRecord:
        if self.r > (self.tokens - self.prefix) // 2:
            msg = "at most half of the tokens after the prefix are merged"
            raise ValueError(msg)
        return self


@dataclass(frozen=True)
class Merged:
    """What the tokens of the stream stand for: `size` [B, N] how many, and, where it is followed, `source` [B, M]: the
    place in the stream of what each of the M tokens that came in has become part of.
    """

    size: Tensor
    source: Tensor | None


class Merge(Reducer):
    """Merges the `r` most similar pairs of tokens that enter a branch, by the keys of the attention before it.

    Where that attention did not run (its branch was skipped, or is gone), the stream stands in for the keys, the mean
    over as many parts of it as are as wide as they are.
    """

    needs_keys = True

    def __init__(self, site: str, stated: MergeRecord) -> None:
        super().__init__()
        self.sites = (site,)
        self.stated = stated
        self.fewest_tokens = stated.tokens - stated.r
        self.follows = False  # whether `Merged.source` is wanted
        self._macs = int(matching_macs(stated.tokens - stated.prefix, stated.width))

    def reduce(self, x_BNC: Tensor, state: ForwardState) -> Tensor:
        """The tokens that are left, [B, N - r, C]. Errors: keys that are those of other tokens."""
        stated, count = self.stated, x_BNC.shape[1]
        r = min(stated.r, (count - stated.prefix) // 2)
        if r < 1:  # images so small that nothing is left to merge
            self._macs = 0
            return x_BNC
        if state.keys is not None and state.keys.shape[1] != count:
            msg = f"tome: at {self.sites[0]} there are {count} tokens, and the attention before it had "
            raise UsdcoreError(f"{msg}{state.keys.shape[1]}: make the file anew, where they are the same")
        before = state.notes.get(NOTE) or Merged(x_BNC.new_ones(x_BNC.shape[:2], dtype=torch.float32), None)
        metric = self._metric(x_BNC, state)
        self._macs = int(matching_macs(count - stated.prefix, metric.shape[-1]))
        found = match(metric, stated.prefix, r)
        x_BNC, size = merge(x_BNC, before.size, found)
        source = destinations(found) if self.follows else None
        if source is not None and before.source is not None:
            source = source.gather(1, before.source)
        state.notes[NOTE] = Merged(size, source)
        if stated.proportional:
            state.key_weight = size
        return x_BNC

    def macs(self) -> float:
        """Of the similarities, per image."""
        return 0.0 if self.is_neutral else float(self._macs)

    def _metric(self, x_BNC: Tensor, state: ForwardState) -> Tensor:
        """What tokens are compared by, [B, N, d]; the same where a branch is masked as where it is skipped."""
        keys, rows, on = state.keys, state.key_rows, state.factor(self.stated.after)
        if keys is None:
            return _folded(x_BNC, self.stated.width)
        if rows is not None:
            return _folded(x_BNC, keys.shape[-1]).index_copy(0, rows, keys.to(x_BNC.dtype))
        if on is None:
            return keys
        return torch.where((on != 0).view(-1, 1, 1), keys.to(x_BNC.dtype), _folded(x_BNC, keys.shape[-1]))


def _folded(x_BNC: Tensor, width: int) -> Tensor:
    """The mean over parts of `width` channels, [B, N, width]; the last part is filled up with zeros."""
    x = nn.functional.pad(x_BNC.detach(), (0, -x_BNC.shape[-1] % width))
    return x.unflatten(-1, (-1, width)).mean(-2)
