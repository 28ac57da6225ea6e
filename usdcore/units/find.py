"""`find_units`: the one entry point of this package."""

from __future__ import annotations

import gc
from contextlib import contextmanager
from typing import TYPE_CHECKING

from usdcore.units.attention import attention_drafts
from usdcore.units.branches import (
    BranchDraft,
    branch_drafts,
    build_blocks,
    build_branches,
    constant_ops,
    first_called,
    innermost,
)
from usdcore.units.build import build_group, explain, params_of, place
from usdcore.units.drafts import UnitDraft, components
from usdcore.units.execute import Executor
from usdcore.units.ffn import ffn_drafts
from usdcore.units.follow import follow
from usdcore.units.graph import Ancestry, build_graph, residuals
from usdcore.units.labels import label
from usdcore.units.layers import on_cpu
from usdcore.units.macs import op_macs
from usdcore.units.record import record
from usdcore.units.separate import separate
from usdcore.units.slots import SlotFinder, paid
from usdcore.units.tally import Tally
from usdcore.units.types import AttentionUnit, Branch, FeedForwardUnit, Group, Units
from usdcore.units.width import WidthFinder, told_sizes
from usdcore.units.width_costs import Parts

if TYPE_CHECKING:
    from collections.abc import Iterator

    from torch import Tensor, nn

    from usdcore.units.labelling import Labelling


def find_units(model: nn.Module, example_inputs: Tensor | tuple[Tensor, ...]) -> Units:
    """The attention, feed-forward and block units of `model`, found in its dataflow, whatever its classes are called.

    `example_inputs` is what the forward takes, [B, C, H, W] for images; only shapes matter, so tensors on the meta
    device will do. The model is only read: a weightless copy without its hooks runs once, in evaluation mode. What
    can't be pruned or gated is there too, with a reason. Errors: a forward that fails, or that needs values.
    """
    with on_cpu(), unbroken():
        return _find(model, example_inputs)


def count(model: nn.Module, example_inputs: Tensor | tuple[Tensor, ...]) -> tuple[int, int]:
    """MACs per sample and parameters, as `find_units` counts them, without looking for units. Errors: as there."""
    with on_cpu(), unbroken():
        trace = record(model, example_inputs, Executor())
        return sum(op_macs(trace, op) for op in trace.ops), sum(trace.parameters.values())


@contextmanager
def unbroken() -> Iterator[None]:
    """Without the garbage collector, which would look through all that is alive many times: little is freed here."""
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()


def _find(model: nn.Module, example_inputs: Tensor | tuple[Tensor, ...]) -> Units:
    executor = Executor()
    trace = record(model, example_inputs, executor)
    macs = [op_macs(trace, op) for op in trace.ops]
    ancestry = Ancestry(trace)
    flow = label(trace, ancestry, residuals(ancestry), macs)
    tied = components(flow)
    finder = _Finder(flow, [*attention_drafts(flow, tied), *ffn_drafts(flow, tied)], executor)
    attention, ffn = finder.units()
    return Units(
        attention=attention,
        ffn=ffn,
        blocks=build_blocks(flow, finder.built),
        graph=build_graph(trace, macs),
        macs=sum(macs),
        constant_macs=sum(macs[op] for op in constant_ops(trace)),
        params=sum(trace.parameters.values()),
        find_widths=WidthFinder(flow, finder.parts(), told_sizes(model), executor),
    )


class _Finder:
    """Names the units and puts groups and branches in them."""

    def __init__(self, flow: Labelling, drafts: list[UnitDraft], executor: Executor) -> None:
        self.flow = flow
        self.drafts = drafts
        self.main = Tally(flow, [draft.groups[0] for draft in drafts])
        cores = [draft for draft in drafts if draft.core_op is not None]
        self.dims: list[tuple[Tally, SlotFinder]] = []
        for number, kinds in ((1, {"makes"}), (2, {"makes", "reads"})):
            own = [draft.groups[number] for draft in cores]
            tally = Tally(flow, own, paid(flow, own, frozenset(kinds)))
            self.dims.append((tally, SlotFinder(flow, tally, executor, is_read="reads" in kinds)))
        # What is done to queries and keys is done to zeros in the place of those that go.
        for tally in (self.main, self.dims[1][0]):
            explain(tally)
        self.following = follow(self.main, executor)
        separate(self.main)
        branches = branch_drafts(flow)
        self.tallied: dict[str, tuple[Group, Tally, int]] = {}
        self.branch_of: list[BranchDraft | None] = []
        self.names: list[str] = []
        for index, draft in enumerate(drafts):
            ops = self.main.ops[index] | ({draft.core_op} if draft.core_op is not None else set())
            self.main.ops[index] = ops
            path, branch = place(flow, ops) or "model", innermost(branches, ops)
            if branch is not None and draft.core_op is None and path == (branch.owner.path or "model"):
                # In a block's own code there may be several, none of which is the block's.
                path = first_called(flow, branch.owner, ops) or path
            self.names.append(self._name(path))
            self.branch_of.append(branch)
            if branch is not None:
                branch.units.append(self.names[-1])
        self.built = build_branches(flow, branches)

    def parts(self) -> Parts:
        """What the costs of the model's parts are counted from; after `units`."""
        units = {
            name: (f"{name}:{draft.groups[0].kind}", frozenset(self.main.ops[index]))
            for index, (name, draft) in enumerate(zip(self.names, self.drafts, strict=True))
        }
        branches = {branch.name: (branch, draft.ops) for draft, branch in self.built}
        return Parts(units, branches, self.tallied)

    def units(self) -> tuple[tuple[AttentionUnit, ...], tuple[FeedForwardUnit, ...]]:
        """All units, in order of execution."""
        attention: list[AttentionUnit] = []
        ffn: list[FeedForwardUnit] = []
        for index, draft in enumerate(self.drafts):
            name, groups, branch = self.names[index], self._groups(index), self._branch(index)
            # Where the heads are not known, no cost is theirs alone: the core's own is shown.
            pairs = self.main.macs_per_pair(index) * draft.groups[0].size ** 2
            macs = int(self.main.macs(index).sum()) + pairs or sum(self.flow.macs[op] for op in self.main.ops[index])
            params = params_of(self.flow, self.main.ops[index])
            if draft.core_op is None:
                ffn.append(FeedForwardUnit(name, groups[0].size, macs, params, groups, branch))
            else:
                attention.append(AttentionUnit(name, *draft.shape, macs, params, groups, branch))
        return tuple(attention), tuple(ffn)

    def _groups(self, index: int) -> tuple[Group, ...]:
        name, draft, following = self.names[index], self.drafts[index], self.following[index]
        first = f"{name}:{draft.groups[0].kind}"
        if draft.core_op is None:
            hidden = build_group(self.main, index, first, following)
            self.tallied[first] = (hidden, self.main, index)
            return (hidden,)
        number = sum(other.core_op is not None for other in self.drafts[:index])
        nested = []
        for tally, slots in self.dims:
            own = f"{name}:{tally.drafts[number].kind}"
            found = slots.find(number) if tally.drafts[number].size else None
            nested.append(build_group(tally, number, own, parent=first, slots=found))
            self.tallied[own] = (nested[-1], tally, number)
        heads = build_group(self.main, index, first, following, nested=nested)
        self.tallied[first] = (heads, self.main, index)
        return heads, *nested

    def _branch(self, index: int) -> Branch | None:
        return next((branch for draft, branch in self.built if draft is self.branch_of[index]), None)

    def _name(self, path: str) -> str:
        """A path, made unique where one module holds several units."""
        name, number = path, 1
        while name in self.names:
            number += 1
            name = f"{path}#{number}"
        return name
