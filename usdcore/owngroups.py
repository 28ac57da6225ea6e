"""Groups that a plugin brings: channels that some linear layers read, decided about together.

The units of a model have the groups that its dataflow shows. A gate may act on others of its own (AdaViT's heads also
take input columns of the block's FFN): it states them by `Gate.groups`, and they are masked, computed in part and
priced like the model's.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
from torch import nn

from usdcore.errors import UsdcoreError
from usdcore.units.types import Group, MaskPoint, Member

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from usdcore.units.types import BlockUnit, IntArray, Units


def reading_group(model: nn.Module, block: BlockUnit, name: str, kind: str, entry_of: Mapping[str, IntArray]) -> Group:
    """The group `name` (a unit's name, a colon, what it is) of input channels of linear layers in a block: `entry_of`
    has for each layer the entry of every channel that it reads, equally many of each, or -1.

    Errors: no such layer, or entries that do not all cost the same.
    """
    size = max(int(entries.max()) for entries in entry_of.values()) + 1
    macs = np.zeros(size, np.int64)
    params = np.zeros(size, np.int64)
    for path, entries in entry_of.items():
        module = model.get_submodule(path)
        if not isinstance(module, nn.Linear) or len(entries) != module.in_features or block.num_tokens is None:
            msg = f"{name}: {path} is no linear layer that reads {len(entries)} channels of a sequence of tokens"
            raise UsdcoreError(msg)
        channels = np.bincount(entries[entries >= 0], minlength=size)
        macs += channels * module.out_features * block.num_tokens
        params += channels * module.out_features
    if len(np.unique(macs)) > 1:
        msg = f"{name}: its entries do not all cost the same: {', '.join(map(str, macs))} MACs"
        raise UsdcoreError(msg)
    return Group(
        name=name,
        kind=kind,
        size=size,
        members=tuple(Member(f"{path}.weight", 1, entries) for path, entries in entry_of.items()),
        attributes=(),
        masks=tuple(MaskPoint(path, entries) for path, entries in entry_of.items()),
        macs_per_entry=int(macs[0]),
        params_per_entry=int(params[0]),
        own_macs=int(macs[0]),
        own_params=int(params[0]),
    )


def extended(units: Units, groups: Iterable[Group]) -> Units:
    """The units with groups added to those that their names state. Errors: a name that is taken, or of no unit."""
    added: dict[str, list[Group]] = defaultdict(list)
    for group in groups:
        if group.name not in units.groups:
            added[group.name.partition(":")[0]].append(group)
    if not added:
        return units
    unknown = added.keys() - {unit.name for unit in units.all}
    if unknown:
        msg = f"a gate brings a group of {min(unknown)}, which is no unit of this model"
        raise UsdcoreError(msg)
    return replace(
        units,
        attention=tuple(replace(unit, groups=(*unit.groups, *added[unit.name])) for unit in units.attention),
        ffn=tuple(replace(unit, groups=(*unit.groups, *added[unit.name])) for unit in units.ffn),
    )
