"""`find_units`: the one entry point of this package."""

from __future__ import annotations

from contextlib import nullcontext
from typing import TYPE_CHECKING

import torch

from usdcore.units.attention import attention_drafts
from usdcore.units.branches import BranchDraft, branch_drafts, build_blocks, build_branches, innermost
from usdcore.units.build import build_group, explain, params_of, place
from usdcore.units.drafts import UnitDraft, components
from usdcore.units.execute import Executor
from usdcore.units.ffn import ffn_drafts
from usdcore.units.follow import follow
from usdcore.units.graph import Ancestry, build_graph, residuals
from usdcore.units.labels import label
from usdcore.units.macs import op_macs
from usdcore.units.record import record
from usdcore.units.slots import SlotFinder
from usdcore.units.tally import Tally
from usdcore.units.types import AttentionUnit, Branch, FeedForwardUnit, Group, Units

if TYPE_CHECKING:
    from torch import Tensor, nn

    from usdcore.units.labelling import Labelling


def find_units(model: nn.Module, example_inputs: Tensor | tuple[Tensor, ...]) -> Units:
    """The attention, feed-forward and block units of `model`, found in its dataflow, whatever its classes are called.

    `example_inputs` is what the forward takes, [B, C, H, W] for images; only shapes matter, so tensors on the meta
    device will do. The model is only read: a weightless copy without its hooks runs once, in evaluation mode. What
    can't be pruned or gated is there too, with a reason. Errors: a forward that fails, or that needs values.
    """
    # Labels are real numbers: a default device of the caller's must not take them to the meta device.
    with nullcontext() if torch.get_default_device().type == "cpu" else torch.device("cpu"):
        return _find(model, example_inputs)


def _find(model: nn.Module, example_inputs: Tensor | tuple[Tensor, ...]) -> Units:
    executor = Executor()
    trace = record(model, example_inputs, executor)
    macs = [op_macs(trace, op) for op in trace.ops]
    ancestry = Ancestry(trace)
    flow = label(trace, ancestry, residuals(ancestry), macs)
    component = components(flow)
    finder = _Finder(flow, [*attention_drafts(flow, component), *ffn_drafts(flow, component)], executor)
    attention, ffn = finder.units()
    return Units(
        attention=attention,
        ffn=ffn,
        blocks=build_blocks(flow, finder.built),
        graph=build_graph(trace, macs),
        macs=sum(macs),
        params=sum(trace.parameters.values()),
    )


class _Finder:
    """Names the units and puts groups and branches in them."""

    def __init__(self, flow: Labelling, drafts: list[UnitDraft], executor: Executor) -> None:
        self.flow = flow
        self.drafts = drafts
        self.main = Tally(flow, [draft.groups[0] for draft in drafts])
        cores = [draft for draft in drafts if draft.core_op is not None]
        self.qk_dims = Tally(flow, [draft.groups[1] for draft in cores])
        # Values that are narrower by zeros leave the core's cost as it is.
        kernels = frozenset(draft.core_op for draft in cores if draft.core_op is not None)
        self.v_dims = Tally(flow, [draft.groups[2] for draft in cores], kernels)
        self.slots = SlotFinder(flow, self.v_dims)
        for tally in (self.main, self.qk_dims, self.v_dims):
            explain(tally)
        self.attributes = follow(self.main, executor)
        branches = branch_drafts(flow)
        self.branch_of: list[BranchDraft | None] = []
        self.names: list[str] = []
        for index, draft in enumerate(drafts):
            ops = self.main.ops[index] | ({draft.core_op} if draft.core_op is not None else set())
            self.main.ops[index] = ops
            self.names.append(self._name(place(flow, ops) or "model"))
            self.branch_of.append(innermost(branches, ops))
            if (branch := self.branch_of[-1]) is not None:
                branch.units.append(self.names[-1])
        self.built = build_branches(flow, branches)

    def units(self) -> tuple[tuple[AttentionUnit, ...], tuple[FeedForwardUnit, ...]]:
        """All units, in order of execution."""
        attention: list[AttentionUnit] = []
        ffn: list[FeedForwardUnit] = []
        for index, draft in enumerate(self.drafts):
            name, groups, branch = self.names[index], self._groups(index), self._branch(index)
            # Where the heads are not known, no cost is theirs alone: the core's own is shown.
            macs = int(self.main.macs(index).sum()) or sum(self.flow.macs[op] for op in self.main.ops[index])
            params = params_of(self.flow, self.main.ops[index])
            if draft.core_op is None:
                ffn.append(FeedForwardUnit(name, groups[0].size, macs, params, groups, branch))
            else:
                attention.append(AttentionUnit(name, *draft.shape, macs, params, groups, branch))
        return tuple(attention), tuple(ffn)

    def _groups(self, index: int) -> tuple[Group, ...]:
        name, draft, attributes = self.names[index], self.drafts[index], self.attributes[index]
        first = f"{name}:{draft.groups[0].kind}"
        if draft.core_op is None:
            return (build_group(self.main, index, first, attributes),)
        number = sum(other.core_op is not None for other in self.drafts[:index])
        slots = self.slots.find(number, draft.core_op, self.v_dims.members(number)) if draft.shape[2] else None
        qk_dims = build_group(self.qk_dims, number, f"{name}:qk_dims", parent=first)
        v_dims = build_group(self.v_dims, number, f"{name}:v_dims", parent=first, slots=slots)
        return build_group(self.main, index, first, attributes, nested=v_dims), qk_dims, v_dims

    def _branch(self, index: int) -> Branch | None:
        return next((branch for draft, branch in self.built if draft is self.branch_of[index]), None)

    def _name(self, path: str) -> str:
        """A path, made unique where one module holds several units."""
        name, number = path, 1
        while name in self.names:
            number += 1
            name = f"{path}#{number}"
        return name
