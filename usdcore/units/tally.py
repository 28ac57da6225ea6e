"""Which parameter entries and how many MACs belong to each entry of each group.

All groups of one level (heads and hidden, or the dims inside heads) share no label, so one numbering covers them: the
global entry of a label is its group's offset plus its entry.
"""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

import numpy as np

from usdcore.units.flat import side_by_side
from usdcore.units.layers import distinct
from usdcore.units.types import Member

if TYPE_CHECKING:
    from collections.abc import Iterator

    from usdcore.units.drafts import Draft
    from usdcore.units.labelling import Labelling, Share, Use
    from usdcore.units.layers import IntArray

    FloatArray = np.typing.NDArray[np.float64]

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
        self.ops: list[set[int]] = [set() for _ in drafts]
        self.makers: list[set[int]] = [set() for _ in drafts]
        self.readers: list[set[int]] = [set() for _ in drafts]
        self.slot_entry = self._slot_entries()
        self._member_axes = self._axes_by_group()
        self.squared = self._squared()
        self._macs = self._macs_by_entry()

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
        own = entries[entries >= 0]
        if not own.size:
            return []
        first, last = self.owner[own.min()], self.owner[own.max()]
        return [int(first)] if first == last else [int(group) for group in distinct(self.owner[own])]

    def _shares(self) -> list[tuple[Share, IntArray]]:
        """What each share of an op's cost belongs to: global entries, as often as they have a part in it."""
        flat = self.flow.flat
        found = [flat.shares[i] for i in flat.share_ranges.around(self.label_entry >= 0)]
        entries = [self.label_entry[share.labels] for share in found]
        entries += [self.slot_entry[share.labels[share.labels >= 0]] for share in self.flow.slot_shares]
        return [(share, own[own >= 0]) for share, own in zip([*found, *self.flow.slot_shares], entries, strict=True)]

    def _macs_by_entry(self) -> FloatArray:
        shares = [(share, entries) for share, entries in self._shares() if len(entries)]
        entries, starts = side_by_side([entries for _, entries in shares])
        for row, group in self._met(entries, starts):
            self.ops[group].add(shares[row][0].op)
        macs = [share.macs if self._is_paid(share.op) else 0.0 for share, _ in shares]
        weights = np.repeat(np.array(macs), [len(entries) for _, entries in shares])
        found: FloatArray = np.bincount(entries, weights, minlength=self.num_entries).astype(float, copy=False)
        return found

    def _met(self, entries: IntArray, starts: IntArray) -> Iterator[tuple[int, int]]:
        """The groups of the global entries in each row, where rows begin at `starts`: row and group."""
        if not len(starts):
            return
        high = np.maximum.reduceat(entries, starts)
        low = np.minimum.reduceat(entries.view(np.uint64), starts).view(np.int64)  # -1, no entry, is the largest there
        rows = np.flatnonzero(high >= 0)
        groups = (rows, self.owner[low[rows]], self.owner[high[rows]])
        for row, first, last in zip(*(array.tolist() for array in groups), strict=True):
            if first == last:
                yield row, first
            else:
                end = starts[row + 1] if row + 1 < len(starts) else len(entries)
                yield from ((row, group) for group in self.groups_of(entries[starts[row] : end]))

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
        bases = np.array([base for base, _, _ in self.flow.slot_axes], dtype=np.int64)
        found: dict[int, list[int]] = {}
        for index, group in self._met(self.slot_entry, bases):
            found.setdefault(group, []).append(index)
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

    def _slot_entries(self) -> IntArray:
        """The entry of each slot, from all uses."""
        flat, slot_entry = self.flow.flat, np.full(self.flow.num_slots, UNSEEN)
        uses = [flat.uses[i] for i in flat.use_ranges.around(self.label_entry >= 0)]
        labels, starts = side_by_side([use.labels for use in uses])
        slots, _ = side_by_side([use.slots for use in uses])
        entries = self.label_entry[labels]
        for row, group in self._met(entries, starts):
            use = uses[row]
            self.ops[group].add(use.op)
            if use.kind != "aligns":
                (self.readers if use.kind == "reads" else self.makers)[group].add(use.op)
        slot_entry[slots] = entries
        if flat.is_met_again[slots].any():
            slot_entry[flat.is_met_again] = UNSEEN
            for use in flat.uses:
                if flat.is_met_again[use.slots].any():
                    self._read(slot_entry, use)
        return slot_entry

    def _read(self, slot_entry: IntArray, use: Use) -> None:
        entries = self.label_entry[use.labels]
        if not (entries >= 0).any():
            if not self._is_coarse[use.labels].all():  # a head is no entry of the dims inside it
                self._mark(slot_entry, use, use.slots, np.full(len(use.slots), SHARED))
            return
        order = np.argsort(use.slots, kind="stable")
        slots, first = np.unique(use.slots[order], return_index=True)
        low = np.minimum.reduceat(entries[order], first)
        high = np.maximum.reduceat(entries[order], first)
        self._mark(slot_entry, use, slots, np.where(low == high, low, SHARED))

    def _mark(self, slot_entry: IntArray, use: Use, slots: IntArray, entries: IntArray) -> None:
        """Give slots their entries; a slot that another op gave to another entry can't follow either."""
        before = slot_entry[slots]
        clash = (before != UNSEEN) & (before != entries)
        if clash.any():
            reason = f"its parameters are used a second time, by {self.flow.where(self.flow.trace.ops[use.op])}"
            for group in self.groups_of(np.concatenate([before[clash], entries[clash]])):
                self.drafts[group].reasons.append(reason)
        slot_entry[slots] = entries
