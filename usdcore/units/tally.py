"""Which parameter entries and how many MACs belong to each entry of each group.

All groups of one level (heads and hidden, or the dims inside heads) share no label, so one numbering covers them: the
global entry of a label is its group's offset plus its entry.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from usdcore.units.layers import IntArray
from usdcore.units.types import Member

if TYPE_CHECKING:
    from usdcore.units.drafts import Draft
    from usdcore.units.labelling import Labelling, Use

UNSEEN, SHARED = -2, -1


class Tally:
    """Global entries of labels and slots. `slot_entry` is -1 for a slot that several entries share, or none."""

    def __init__(self, flow: Labelling, drafts: list[Draft]) -> None:
        self.flow = flow
        self.drafts = drafts
        self.offsets = np.cumsum([0, *(draft.size for draft in drafts)])
        self.num_entries = int(self.offsets[-1])
        self.owner = np.repeat(np.arange(len(drafts)), [draft.size for draft in drafts])
        self.label_entry = self._label_entries()
        self.slot_entry = np.full(flow.num_slots, UNSEEN)
        self.ops: list[set[int]] = [set() for _ in drafts]
        for use in flow.uses:
            self._read(use)
        self._macs = np.zeros(self.num_entries)
        for share in flow.shares:
            entries = self.label_entry[share.labels[share.labels >= 0]]
            entries = entries[entries >= 0]
            if len(entries):
                np.add.at(self._macs, entries, share.macs)
                self._touch(entries, share.op)

    def macs(self, group: int) -> IntArray:
        """MACs per sample of each entry of a group."""
        return np.rint(self._macs[self.offsets[group] : self.offsets[group + 1]]).astype(np.int64)

    def members(self, group: int) -> tuple[Member, ...]:
        """The parameter and buffer axes that a group owns positions of, in the order of their first use."""
        low, high = self.offsets[group], self.offsets[group + 1]
        found = []
        for base, value, axis in self.flow.slot_axes:
            trace_value = self.flow.trace.values[value]
            entries = self.slot_entry[base : base + trace_value.shape[axis]]
            own = (entries >= low) & (entries < high)
            if own.any():
                assert trace_value.tensor is not None
                found.append(Member(trace_value.tensor, axis, np.where(own, entries - low, -1)))
        return tuple(found)

    def groups_of(self, entries: IntArray) -> list[int]:
        """The groups that global entries belong to; -1 belongs to none."""
        return [int(g) for g in np.unique(self.owner[entries[entries >= 0]])]

    def _label_entries(self) -> IntArray:
        label_entry = np.full(self.flow.num_labels, -1)
        for draft, offset in zip(self.drafts, self.offsets[:-1], strict=True):
            own = draft.entry_of >= 0
            clash = own & (label_entry >= 0)
            if clash.any():
                others = self.groups_of(label_entry[clash])
                for reasons in (draft.reasons, *(self.drafts[g].reasons for g in others)):
                    reasons.append("it shares projections with another unit")
                own &= ~clash
            label_entry[own] = draft.entry_of[own] + offset
        for labels, children in self.flow.coarse:
            below = label_entry[children]
            whole = (below[:, :1] == below).all(axis=1) & (children >= 0).all(axis=1)
            label_entry[labels] = np.where(whole, below[:, 0], -1)
        return label_entry

    def _read(self, use: Use) -> None:
        entries = self.label_entry[use.labels]
        if not (entries >= 0).any():
            self._mark(use, use.slots, np.full(len(use.slots), SHARED))
            return
        self._touch(entries[entries >= 0], use.op)
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

    def _touch(self, entries: IntArray, op: int) -> None:
        for group in self.groups_of(entries):
            self.ops[group].add(op)
