"""What `find_units` finds: units, their groups of indices, and their residual branches. Plain data, no torch."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    import networkx as nx

IntArray = npt.NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class Member:
    """One axis of one parameter or buffer that follows a group.

    `entry_of` has one element per position of the axis: the group entry that owns the position, or -1 if the position
    belongs to no entry (it then always stays).
    """

    tensor: str
    axis: int
    entry_of: IntArray


@dataclass(frozen=True)
class Attribute:
    """An int attribute of the host that must follow: its value falls by `per_entry` for each entry removed."""

    module: str
    name: str
    per_entry: int


@dataclass(frozen=True, eq=False)
class MaskPoint:
    """Where a factor on a group's entries acts: the last axis of the first input of module `module`."""

    module: str
    entry_of: IntArray


@dataclass(frozen=True, eq=False)
class Slots:
    """Where the entries of a nested group lie between the linear module that makes them and the one that reads them.

    Parent p has the positions `written[p]` of the writer's output and `read[p]` of the reader's input, [parents, slots]
    each, slot for slot the same channel. The parents have equally many slots; how many of them hold an entry may
    differ.
    """

    writer: str
    reader: str
    written: IntArray
    read: IntArray


@dataclass(frozen=True, eq=False)
class Group:
    """Indices of a unit that are kept or removed together.

    `macs_per_entry` (multiply-accumulates per sample) and `params_per_entry` are what one entry costs; the rest of its
    branch does not depend on the group. `parent_of` gives, for a group nested in another (head dims in heads), the
    entry of group `parent` that each entry lies in, and `slots` their places. What is nested in an entry is included in
    its cost (the mean, rounded down, where entries differ in it); `own_macs` and `own_params` are without what can be
    pruned of it. `reason`
    says why the group can't be pruned; None means that it can.
    """

    name: str
    kind: Literal["heads", "qk_dims", "v_dims", "hidden"] | str
    size: int
    members: tuple[Member, ...]
    attributes: tuple[Attribute, ...]
    mask: MaskPoint | None
    macs_per_entry: int
    params_per_entry: int
    reason: str | None = None
    parent_of: IntArray | None = None
    parent: str | None = None
    slots: Slots | None = None
    own_macs: int = 0
    own_params: int = 0


@dataclass(frozen=True)
class Branch:
    """A residual branch `x + branch(x)`: the direct children of module `owner` that compute it, in order.

    `macs` and `params` are those of the whole branch, per sample. `reason` says why it can't be gated; None means that
    it can.
    """

    name: str
    owner: str
    chain: tuple[str, ...]
    macs: int
    params: int
    reason: str | None = None


@dataclass(frozen=True, eq=False)
class AttentionUnit:
    """One attention core with its projections. `qk_dim` and `v_dim` are a head's widths in the core, zeros included
    where its values were pruned.
    """

    name: str
    num_heads: int
    qk_dim: int
    v_dim: int
    macs: int
    params: int
    groups: tuple[Group, ...]
    branch: Branch | None


@dataclass(frozen=True, eq=False)
class FeedForwardUnit:
    """Linear layers around an activation. `hidden` is the number of hidden neurons (a gated pair counts once)."""

    name: str
    hidden: int
    macs: int
    params: int
    groups: tuple[Group, ...]
    branch: Branch | None


Unit = AttentionUnit | FeedForwardUnit


@dataclass(frozen=True, eq=False)
class BlockUnit:
    """The residual branches of one encoder layer, in the order in which its module adds them to the stream.

    `width` is the number of channels of the stream that enters the block.
    """

    name: str
    width: int
    branches: tuple[Branch, ...]

    @property
    def units(self) -> tuple[str, ...]:
        """The names of the units that the branches belong to."""
        return tuple(branch.name for branch in self.branches)


@dataclass(frozen=True, eq=False)
class Units:
    """Everything found in a model; `macs` are per sample, `params` counts every parameter once."""

    attention: tuple[AttentionUnit, ...]
    ffn: tuple[FeedForwardUnit, ...]
    blocks: tuple[BlockUnit, ...]
    graph: nx.DiGraph[Any] = field(repr=False)
    macs: int = 0
    params: int = 0

    @property
    def all(self) -> tuple[Unit, ...]:
        """Attention and feed-forward units together."""
        return (*self.attention, *self.ffn)

    @property
    def groups(self) -> dict[str, Group]:
        """Every group by name."""
        return {group.name: group for unit in self.all for group in unit.groups}

    @property
    def nested(self) -> dict[str, Group]:
        """The prunable groups that lie inside the entries of another, by that one's name: head dims, by heads."""
        return {g.parent: g for g in self.groups.values() if g.parent is not None and g.reason is None}

    @property
    def branches(self) -> dict[str, Branch]:
        """Every residual branch of a block by name, gateable or not, in the order of execution."""
        return {branch.name: branch for block in self.blocks for branch in block.branches}
