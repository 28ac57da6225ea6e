"""What the gates of a model drew in its last forward, site by site, for those who look after them."""

from __future__ import annotations

from typing import TYPE_CHECKING

from usdcore.plans import is_token_site

if TYPE_CHECKING:
    from torch import Tensor

    from usdcore.gates import Gating


def drawn_at(gating: Gating, key: str, site: str) -> Tensor | None:
    """The keep factors at a site of the gate `key`: [] or [B] of a branch or a block, [n] or [B, n] of a group, [N] or
    [B, N] of tokens. Factors of several gates there are multiplied. None where the gate is gone or drew nothing.
    """
    if key not in gating.gates:
        return None
    if is_token_site(site):
        draws = gating.state.draws.get(site)
        return draws[0].keep if draws else None
    side = gating.state.static if gating.gates[key].scope == "static" else gating.state.dynamic
    own = gating.blocks.get(site, (site,))  # a whole block's factor is noted at each of its branches
    return side.get(own[0]) if own else None
