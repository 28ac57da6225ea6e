"""How every cost depends on the widths of the residual streams.

From shapes: each axis of each tensor loses so many positions for a channel that goes, and MACs are products of sizes.
What belongs to a group of another kind (a head's rows of a weight that reads the stream) is a share of such a product.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from functools import reduce
from math import prod
from operator import add
from typing import TYPE_CHECKING

import numpy as np

from usdcore.units.macs import resized_macs
from usdcore.units.removal import Removal
from usdcore.units.terms import Terms

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from usdcore.units.labelling import Labelling
    from usdcore.units.tally import Tally
    from usdcore.units.types import Branch, Group

    Costs = dict[tuple[str, str], Terms]


@dataclass(frozen=True, slots=True, eq=False)
class Parts:
    """The model taken apart: units with their first group's name and their ops, branches with theirs, and groups with
    the tally that has them and their number in it; all by name.
    """

    units: Mapping[str, tuple[str, frozenset[int]]]
    branches: Mapping[str, tuple[Branch, Iterable[int]]]
    groups: Mapping[str, tuple[Group, Tally, int]]


class Resized:
    """The shapes of all tensors, in terms of how many channels the streams have left.

    Where a shape does not fall by the same for each channel, the stream gets a reason.
    """

    def __init__(self, tally: Tally, names: list[str]) -> None:
        self.trace = tally.flow.trace
        self.names = names
        self.drafts = tally.drafts
        entries = np.arange(tally.num_entries)
        bounds = list(zip(tally.offsets[:-1], tally.offsets[1:], strict=True))
        self._first = [Removal(tally, entries == low) for low, _ in bounds]
        self._others = [Removal(tally, (entries >= low) & (entries < high - 1)) for low, high in bounds]
        self._shapes: dict[int, tuple[Terms | int, ...]] = {}

    def shape(self, value: int) -> tuple[Terms | int, ...]:
        """The shape of a value."""
        found = self._shapes.get(value)
        if found is None:
            sizes: list[Terms | int] = list(self.trace.values[value].shape)
            for group, name in enumerate(self.names):
                for axis, lost in enumerate(self._lost(value, group)):
                    if lost:
                        sizes[axis] = sizes[axis] + Terms({(): -lost * self.drafts[group].size, (name,): lost})
            found = self._shapes[value] = tuple(sizes)
        return found

    def shared(self, value: int) -> set[str]:
        """The streams that hold some positions of an axis of a value, beside others that are not theirs."""
        terms = [size for size in self.shape(value) if isinstance(size, Terms)]
        return {name for t in terms if t.factors.get((), 0) for names in t.factors for name in names}

    def _lost(self, value: int, group: int) -> list[int]:
        """The positions that one channel has on each axis."""
        size = self.drafts[group].size
        before, one, all_but_one = (
            self.trace.values[value].shape,
            self._first[group].shape(value),
            self._others[group].shape(value),
        )
        lost = [n - m for n, m in zip(before, one, strict=True)]
        if [n - m for n, m in zip(before, all_but_one, strict=True)] != [(size - 1) * n for n in lost]:
            reason = f"its channels do not lie evenly in a tensor of shape {list(before)}"
            self.drafts[group].reasons.append(reason)
        return lost


def costs_in_widths(flow: Labelling, parts: Parts, resized: Resized) -> tuple[Costs, Costs]:
    """MACs per sample and parameters of all parts of a model, in terms of the streams' counts; for the keys see
    `types.Widths`. Adds a reason to a stream that this can't be said for.
    """
    macs, params = _macs(flow, parts, resized), _params(flow, parts, resized)
    for costs in (macs, params):
        costs.update({("own", name): costs["group", name] for name in parts.groups})
        for name, (group, *_) in parts.groups.items():
            if group.parent is not None and group.reason is None:
                costs["own", group.parent] = costs["own", group.parent] - costs["group", name]
    return macs, params


def _macs(flow: Labelling, parts: Parts, resized: Resized) -> Costs:
    trace = flow.trace
    ops = {op.index: _terms(resized_macs(trace, op, resized.shape)) for op in trace.ops if flow.macs[op.index]}
    found: Costs = {("model", ""): _sum(ops.values())}
    by_op = {id(tally): tally.macs_by_op() for _, tally, _ in parts.groups.values()}
    for name, (group, tally, number) in parts.groups.items():
        own = {op: macs for op, macs in by_op[id(tally)][number].items() if op in ops}
        found["group", name] = _sum(ops[op] * macs // flow.macs[op] for op, macs in own.items())
        found["pairs", name] = _sum(ops[op] for op, owner in tally.squared.items() if owner == number and op in ops)
        for op in own if group.reason is None else ():
            for stream in set().union(*map(resized.shared, (*trace.ops[op].inputs, *trace.ops[op].outputs))):
                reason = f"{flow.where(trace.ops[op])} holds its entries beside those of others"
                resized.drafts[resized.names.index(stream)].reasons.append(reason)
    for name, (first, unit_ops) in parts.units.items():
        own_terms = found["group", first] + found["pairs", first]
        is_known = any(own_terms.factors.values())
        found["unit", name] = own_terms if is_known else _sum(ops[i] for i in unit_ops if i in ops)
    for name, (_, branch_ops) in parts.branches.items():
        found["branch", name] = _sum(ops[i] for i in branch_ops if i in ops)
    return found


def _params(flow: Labelling, parts: Parts, resized: Resized) -> Costs:
    trace = flow.trace
    value_of = {v.tensor: v.index for v in reversed(trace.values) if v.tensor in trace.parameters}
    tensors = {name: _terms(prod(resized.shape(value_of[name]))) for name in trace.parameters}
    found: Costs = {("model", ""): _sum(tensors.values())}
    for name, (group, *_) in parts.groups.items():
        times = Counter(m.tensor for m in group.members if m.tensor in tensors)
        found["pairs", name] = _sum(tensors[tensor] for tensor, number in times.items() if number > 1)
        found["group", name] = _sum(
            tensors[m.tensor] * int((m.entry_of >= 0).sum()) // len(m.entry_of)
            for m in group.members
            if times[m.tensor] == 1
        )
    for name, (_, unit_ops) in parts.units.items():
        read = {trace.values[v].tensor for i in unit_ops for v in trace.ops[i].inputs}
        found["unit", name] = _sum(terms for tensor, terms in tensors.items() if tensor in read)
    for name, (branch, _) in parts.branches.items():
        inside = tuple(f"{module}." for module in branch.modules)
        own = (t for tensor, t in tensors.items() if tensor in branch.tensors or tensor.startswith(inside))
        found["branch", name] = _sum(own)
    return found


def _terms(value: Terms | int) -> Terms:
    return value if isinstance(value, Terms) else Terms.number(value)


def _sum(terms: Iterable[Terms]) -> Terms:
    return reduce(add, terms, Terms({}))
