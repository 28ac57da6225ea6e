"""Which heads of a block an image may do without, and which input columns of its FFN go with them."""

from __future__ import annotations

from typing import TYPE_CHECKING

from usdcore.errors import UsdcoreError
from usdcore_adavit.gate import COLUMNS, HeadGroup, Tie, readers

if TYPE_CHECKING:
    from usdcore.strategy import Attachment
    from usdcore.units.types import AttentionUnit, BlockUnit, Group


def head_groups(site: Attachment, block: BlockUnit, is_tied: bool) -> list[HeadGroup]:
    """The heads of a block's attention that can be masked for each image; with `is_tied` each takes with it the columns
    at its place of what the block's FFNs read (AdaViT's width mode).

    Errors: columns that do not divide into heads.
    """
    found = []
    for unit in site.units.attention:
        if unit.branch is None or unit.branch not in block.branches:
            continue
        for group in unit.groups:
            per_image = all(point.sample_axis is not None for point in group.masks)
            if group.kind == "heads" and group.reason is None and group.size > 1 and per_image:
                ties = _ties(site, block, unit, group) if is_tied else []
                sites = (group.name, *(tie.site for tie in ties))
                found.append(HeadGroup(sites=sites, count=group.size, ties=tuple(ties)))
    return found


def _ties(site: Attachment, block: BlockUnit, unit: AttentionUnit, heads: Group) -> list[Tie]:
    places = site.base_indices(heads.name) or tuple(range(heads.size))
    ties = []
    for ffn in site.units.ffn:
        if ffn.branch is None or ffn.branch not in block.branches:
            continue
        if not readers(site.units, ffn.name) or (max(places) + 1) * unit.v_dim > block.width:
            msg = (
                f"{ffn.name}: what it reads does not divide into columns for the heads of {unit.name}; give adavit "
                f"heads: attention"
            )
            raise UsdcoreError(msg)
        ties.append(Tie(site=f"{ffn.name}:{COLUMNS}", places=places, each=unit.v_dim))
    return ties
