"""Which parameter entries and how many MACs belong to each entry of each group.

All groups of one level (heads and hidden, or the dims inside heads) share no label, so one numbering covers them: the
global entry of a label is its group's offset plus its entry.
"""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

import numpy as np

from usdcore.units.types import Member

if TYPE_CHECKING:
    from collections.abc import Iterator

    from usdcore.units.drafts import Draft
    from usdcore.units.labelling import Labelling, Share, Use
    from usdcore.units.layers import IntArray

UNSEEN, SHARED = -2, -1


class Tally:
    """Global entries of labels and slots. `slot_entry` is -1 for a slot that several entries share, or none.

    `ops` are the ops that hold entries of a group, `makers` and `readers` those of them that make and read them with a
    weight. Where `paid` is given, only ops in it cost less when entries go. `squared` are the ops that make entries of
    a group from all entries of that group, with the group: they cost so much for each pair. `num_calls` is how often
    each module runs.
    """

    def __init__(self, flow: Labelling, drafts: list[Draft], paid: frozenset[int] | None = None) -> None:
        self.flow = flow
        self.drafts = drafts
        self.paid = paid
        self.offsets = np.cumsum([0, *(draft.size for draft in drafts)])
        self.num_entries = int(self.offsets[-1])
        self.owner = np.repeat(np.arange(len(drafts)), [draft.size for draft in drafts])
        self.label_entry = self._label_entries()
        self._is_coarse = np.zeros(flow.num_labels, dtype=bool)
        for labels, _ in flow.coarse:
            self._is_coarse[labels] = True
        self.num_calls = Counter(call.path for call in flow.trace.calls)
        self.slot_entry = np.full(flow.num_slots, UNSEEN)
        self.ops: list[set[int]] = [set() for _ in drafts]
        self.makers: list[set[int]] = [set() for _ in drafts]
        self.readers: list[set[int]] = [set() for _ in drafts]
        for use in flow.uses:
            self._read(use)
        self._member_axes = self._axes_by_group()
        self.squared = self._squared()
        self._macs = np.zeros(self.num_entries)
        for share, entries in self._shares():
            self._touch(entries, share.op)
            if self._is_paid(share.op):
                np.add.at(self._macs, entries, share.macs)

    def macs_by_op(self) -> list[dict[int, int]]:
        """MACs per sample of all entries of each group, op by op; those of pairs of entries are not among them."""
        found: list[dict[int, float]] = [{} for _ in self.drafts]
        for share, entries in self._shares():
            if self._is_paid(share.op):
                numbers = np.bincount(self.owner[entries], minlength=1)
                for group in np.flatnonzero(numbers):
                    found[group][share.op] = found[group].get(share.op, 0.0) + share.macs * float(numbers[group])
        return [{op: round(macs) for op, macs in own.items()} for own in found]

    def macs(self, group: int) -> IntArray:
        """MACs per sample of each entry of a group."""
        return np.rint(self._macs[self.offsets[group] : self.offsets[group + 1]]).astype(np.int64)

    def macs_per_pair(self, group: int) -> int:
        """MACs per sample of each pair of entries of a group."""
        ops = [op for op, owner in self.squared.items() if owner == group]
        return sum(self.flow.macs[op] for op in ops) // max(self.drafts[group].size, 1) ** 2

    def entries(self, group: int, labels: IntArray) -> IntArray:
        """The entries of some labels in a group; -1 where they belong to another one, or to none."""
        found = np.where(labels < 0, -1, self.label_entry[labels])
        is_own = (found >= self.offsets[group]) & (found < self.offsets[group + 1])
        return np.where(is_own, found - self.offsets[group], -1)

    def members(self, group: int) -> tuple[Member, ...]:
        """The parameter and buffer axes that a group owns positions of, in the order of their first use."""
        low, high = self.offsets[group], self.offsets[group + 1]
        found = []
        for index in self._member_axes.get(group, []):
            base, value, axis = self.flow.slot_axes[index]
            trace_value = self.flow.trace.values[value]
            entries = self.slot_entry[base : base + trace_value.shape[axis]]
            assert trace_value.tensor is not None
            own = (entries >= low) & (entries < high)
            found.append(Member(trace_value.tensor, axis, np.where(own, entries - low, -1)))
        return tuple(found)

    def groups_of(self, entries: IntArray) -> list[int]:
        """The groups that global entries belong to; -1 belongs to none."""
        counts = np.bincount(self.owner[entries[entries >= 0]], minlength=1)
        return [int(group) for group in np.flatnonzero(counts)]

    def _shares(self) -> Iterator[tuple[Share, IntArray]]:
        """What each share of an op's cost belongs to: global entries, as often as they have a part in it."""
        for share in self.flow.shares:
            entries = self.label_entry[share.labels[share.labels >= 0]]
            yield share, entries[entries >= 0]
        for share in self.flow.slot_shares:
            entries = self.slot_entry[share.labels[share.labels >= 0]]
            yield share, entries[entries >= 0]

    def _is_paid(self, op: int) -> bool:
        return (self.paid is None or op in self.paid) and op not in self.squared

    def _squared(self) -> dict[int, int]:
        both = [(op, g) for g in range(len(self.drafts)) for op in self.makers[g] & self.readers[g]]
        found = dict(both)
        for share in self.flow.shares if both else ():
            group = found.get(share.op)
            if group is not None and not (self.entries(group, share.labels) >= 0).all():
                del found[share.op]
        return found

    def _axes_by_group(self) -> dict[int, list[int]]:
        """For each group, the indices into `slot_axes` of the axes that it owns positions of."""
        slots = np.flatnonzero(self.slot_entry >= 0)
        bases = np.array([base for base, _, _ in self.flow.slot_axes], dtype=np.int64)
        owned = self.owner[self.slot_entry[slots]] * len(bases) + np.searchsorted(bases, slots, side="right") - 1
        found: dict[int, list[int]] = {}
        for key in np.unique(owned):
            found.setdefault(int(key) // len(bases), []).append(int(key) % len(bases))
        return found

    def _label_entries(self) -> IntArray:
        label_entry = np.full(self.flow.num_labels, -1)
        for draft, offset in zip(self.drafts, self.offsets[:-1], strict=True):
            before = label_entry[draft.labels]
            for reasons in [self.drafts[g].reasons for g in self.groups_of(before)]:
                for own in (reasons, draft.reasons):
                    own.append("it shares projections with another unit")
            label_entry[draft.labels] = np.where(before < 0, draft.entries + offset, before)
        for labels, children in self.flow.coarse:
            below = label_entry[children]
            whole = (below[:, :1] == below).all(axis=1) & (children >= 0).all(axis=1)
            label_entry[labels] = np.where(whole, below[:, 0], label_entry[labels])
        return label_entry

    def _read(self, use: Use) -> None:
        entries = self.label_entry[use.labels]
        if not (entries >= 0).any():
            if self._is_coarse[use.labels].all():
                return  # a head is no entry of the dims inside it
            self._mark(use, use.slots, np.full(len(use.slots), SHARED))
            return
        for group in self._touch(entries, use.op):
            if use.kind == "reads":
                self.readers[group].add(use.op)
            elif use.kind == "makes":
                self.makers[group].add(use.op)
        if bool((use.slots[1:] > use.slots[:-1]).all()):
            self._mark(use, use.slots, entries)
            return
        order = np.argsort(use.slots, kind="stable")
        slots, first = np.unique(use.slots[order], return_index=True)
        low = np.minimum.reduceat(entries[order], first)
        high = np.maximum.reduceat(entries[order], first)
        self._mark(use, slots, np.where(low == high, low, SHARED))

    def _mark(self, use: Use, slots: IntArray, entries: IntArray) -> None:
        """Give slots their entries; a slot that another op gave to another entry can't follow either."""
        before = self.slot_entry[slots]
        clash = (before != UNSEEN) & (before != entries)
        if clash.any():
            reason = f"its parameters are used a second time, by {self.flow.where(self.flow.trace.ops[use.op])}"
            for group in self.groups_of(np.concatenate([before[clash], entries[clash]])):
                self.drafts[group].reasons.append(reason)
        self.slot_entry[slots] = entries

    def _touch(self, entries: IntArray, op: int) -> list[int]:
        groups = self.groups_of(entries)
        for group in groups:
            self.ops[group].add(op)
        return groups
