"""What `find_units` finds: units, their groups of indices, and their residual branches. Plain data, no torch."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    from collections.abc import Callable

    import networkx as nx

    from usdcore.rewrite import Edit, Sum
    from usdcore.units.terms import Terms

IntArray = npt.NDArray[np.int64]

#: The group of a model's one residual stream; of several, the names end so.
WIDTH = "width"


def is_width(name: str) -> bool:
    """Whether a group of this name is the width of a residual stream."""
    return name == WIDTH or name.endswith(f":{WIDTH}")


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
    """An int attribute of the host that must follow: its value falls by `per_entry` for each entry removed.

    The name may be that of an int in a tuple, list or dict: `size[2]`, `feature_info[0][num_chs]`.
    """

    module: str
    name: str
    per_entry: int


@dataclass(frozen=True, eq=False)
class MaskPoint:
    """Where a factor on a group's entries acts: axis `axis` of the first input, or of the output, of module `module`.

    The axis is the last one (-1) of what a linear module reads or makes, and 1 of what a convolution does. With `edit`
    the module is one that is made for the purpose (see `usdcore.passages.module_at`). Along `sample_axis` lie the
    samples, each with as many rows as all others (windows of the image); None where that is not known.
    """

    module: str
    entry_of: IntArray
    axis: int = -1
    side: Literal["input", "output"] = "input"
    edit: Edit | None = None
    sample_axis: int | None = 0


@dataclass(frozen=True, eq=False)
class Side:
    """Where entries of a nested group lie along the channels that `module` makes, or reads: all positions, those that
    hold zeros in the place of what was pruned included.

    Row r of `table` [rows, slots] has the positions, along `axis` of the module's output or first input, of one part
    (queries, keys or values) of the parent entry `parent_of[r]`. `tensor` is the parameter of the channels, which lie
    along its axis 0 (made) or 1 (read); `tensors` are all that have a position for each channel. With `edit` the module
    is one that is made for the purpose (see `usdcore.passages.module_at`).
    """

    module: str
    tensor: str
    tensors: frozenset[str]
    axis: int
    table: IntArray
    parent_of: IntArray
    edit: Edit | None = None


@dataclass(frozen=True, eq=False)
class Slots:
    """Where the entries of a nested group lie: at the modules that make them, and at those that read them.

    `moves`: what is left may move to the first positions of its row, as nothing in between tells these apart. A parent
    entry of which nothing is pruned holds `per_parent` entries.
    """

    writers: tuple[Side, ...]
    readers: tuple[Side, ...]
    moves: bool
    per_parent: int


@dataclass(frozen=True, eq=False)
class Group:
    """Indices of a unit that are kept or removed together.

    A `qk_dims` entry is a query dim with the key dim that it meets (rotary pairs as one), a `v_dims` entry a value dim
    with what reads it. Heads may keep different numbers of them, and zeros stand in the place of those that go: the
    projections get cheaper, the attention core costs the same until its heads go.
    `masks` has a place for each product that reads the entries: a factor acts on them at all of these together.
    `macs_per_entry` (multiply-accumulates per sample) and `params_per_entry` are what one entry costs; the rest of its
    branch does not depend on the group. `parent_of` gives, for a group nested in another (head dims in heads), the
    entry of group `parent` that each entry lies in, and `slots` their places. What is nested in an entry is included in
    its cost (the mean, rounded down, where entries differ in it); `own_macs` and `own_params` are without what can be
    pruned of it, and without `macs_per_pair` and `params_per_pair`, what each pair of entries costs where some entries
    are made from all others. `edits` are expressions of the host's code, by module, that have to follow from the sizes
    around them.
    `norms` are modules that normalise over the entries: from then on over those that are left, which no mask can do.
    `reason` says why the group can't be pruned; None means that it can.
    """

    name: str
    kind: Literal["heads", "qk_dims", "v_dims", "hidden", "width"] | str
    size: int
    members: tuple[Member, ...]
    attributes: tuple[Attribute, ...]
    masks: tuple[MaskPoint, ...]
    macs_per_entry: int
    params_per_entry: int
    reason: str | None = None
    parent_of: IntArray | None = None
    parent: str | None = None
    slots: Slots | None = None
    own_macs: int = 0
    own_params: int = 0
    macs_per_pair: int = 0
    params_per_pair: int = 0
    edits: tuple[tuple[str, Edit], ...] = ()
    norms: tuple[str, ...] = ()


@dataclass(frozen=True)
class Branch:
    """A residual branch `x + branch(x)`, added by module `owner` with the expression `sum`.

    `modules` are called by the branch alone, and `tensors` are other parameters and buffers that it alone reads: both
    go with it. `macs` and `params` are those of the whole branch, per sample; `constant_macs` of them are spent once
    for a batch of any size (a table of biases that a network computes). `reason` says why it can't be gated; None means
    that it can.
    """

    name: str
    owner: str
    sum: Sum | None
    modules: tuple[str, ...]
    tensors: tuple[str, ...]
    macs: int
    params: int
    reason: str | None = None
    constant_macs: int = 0


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

    `width` is the number of channels of the stream, on its axis `channel_axis` (-1, or 1 of NCHW), `num_tokens` how
    many tokens it is given, None where they do not lie along one axis. `reason` says why the block can't be gated as a
    whole; None means that it can.
    """

    name: str
    width: int
    branches: tuple[Branch, ...]
    channel_axis: int = -1
    reason: str | None = None
    num_tokens: int | None = None

    @property
    def units(self) -> tuple[str, ...]:
        """The names of the units that the branches belong to."""
        return tuple(branch.name for branch in self.branches)


@dataclass(frozen=True, eq=False)
class Widths:
    """The channels of each residual stream as a group, and how all costs depend on how many are left.

    A model with one stream of one width has the group `width`; `reason` says why there is none. Where there are several
    streams (the stages of a pyramid), each is named after the module that first adds to it. `macs` and `params` are in
    terms of how many channels are left, for each part of the model: `("model", "")`, `("unit", name)`,
    `("branch", name)`, `("group", name)` for all entries of a group, `("own", name)` for the same without what can be
    pruned of them, and `("pairs", name)` for all pairs of its entries.
    """

    groups: dict[str, Group]
    macs: dict[tuple[str, str], Terms]
    params: dict[tuple[str, str], Terms]
    reason: str | None = None


@dataclass(frozen=True, eq=False)
class Units:
    """Everything found in a model; `macs` are those of one sample, of which `constant_macs` are spent once for a batch
    of any size; `params` counts every parameter once.

    `find_widths` looks for the widths of the residual streams; `widths` asks it once.
    """

    attention: tuple[AttentionUnit, ...]
    ffn: tuple[FeedForwardUnit, ...]
    blocks: tuple[BlockUnit, ...]
    graph: nx.DiGraph[Any] = field(repr=False)
    macs: int = 0
    params: int = 0
    constant_macs: int = 0
    find_widths: Callable[[], Widths] | None = field(default=None, repr=False)

    @property
    def all(self) -> tuple[Unit, ...]:
        """Attention and feed-forward units together."""
        return (*self.attention, *self.ffn)

    @property
    def groups(self) -> dict[str, Group]:
        """Every group by name."""
        return {group.name: group for unit in self.all for group in unit.groups}

    @cached_property
    def widths(self) -> Widths:
        """The widths of the residual streams, looked for on first use."""
        return Widths({}, {}, {}, "nobody looked for one") if self.find_widths is None else self.find_widths()

    def group(self, name: str) -> Group | None:
        """A group by name, the widths of streams included; None if there is none."""
        return self.widths.groups.get(name) if is_width(name) else self.groups.get(name)

    @property
    def nested(self) -> dict[str, tuple[Group, ...]]:
        """The prunable groups that lie inside the entries of another, by that one's name: head dims, by heads."""
        found: dict[str, tuple[Group, ...]] = {}
        for group in self.groups.values():
            if group.parent is not None and group.reason is None:
                found[group.parent] = (*found.get(group.parent, ()), group)
        return found

    @property
    def branches(self) -> dict[str, Branch]:
        """Every residual branch of a block by name, gateable or not, in the order of execution."""
        return {branch.name: branch for block in self.blocks for branch in block.branches}
