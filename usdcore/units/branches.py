"""Residual branches as chains of child modules, and the blocks that add them to the stream.

A branch can be run on its own when each step from the stream to the add is a call of a direct child of the module that
adds: `x + drop_path(scale(attn(norm(x))))`. Then `Branch.chain` names the children, and calling one after the other is
the branch. Anything else (a product in the module's own code, a second input) is a reason why it can't be gated.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from itertools import groupby
from typing import TYPE_CHECKING

from usdcore.units.layers import axes
from usdcore.units.types import BlockUnit, Branch

if TYPE_CHECKING:
    from usdcore.units.graph import Residual
    from usdcore.units.labelling import Labelling
    from usdcore.units.trace import Call


@dataclass(slots=True, eq=False)
class BranchDraft:
    """A residual add, its chain of children as module paths, and the names of the units inside it."""

    residual: Residual
    owner: Call
    chain: list[str] = field(default_factory=list)
    reason: str | None = None
    units: list[str] = field(default_factory=list)


def branch_drafts(flow: Labelling) -> list[BranchDraft]:
    """One draft for each residual add, in order of execution."""
    trace = flow.trace
    times: dict[str, int] = {}
    for call in trace.calls:
        times[call.path] = times.get(call.path, 0) + 1
    children: dict[int, dict[int, Call]] = {}
    for call in trace.calls[1:]:
        if call.output is not None:
            children.setdefault(call.parent, {})[call.output] = call
    drafts = []
    ordered = sorted(flow.residuals.values(), key=lambda r: (trace.ops[r.op].call, r.op))
    for owner_index, group in groupby(ordered, key=lambda r: trace.ops[r.op].call):
        owner = trace.calls[owner_index]
        own = [BranchDraft(residual, owner) for residual in group]
        for draft in own:
            draft.reason = _walk(flow, draft, children.get(owner_index, {}))
        around = _around(flow, own) if times[owner.path] == 1 else f"{_name(owner)} runs more than once"
        for draft in own:
            draft.reason = draft.reason or around
        drafts += own
    return sorted(drafts, key=lambda draft: draft.residual.op)


def innermost(drafts: list[BranchDraft], ops: set[int]) -> BranchDraft | None:
    """The smallest branch that holds all of some ops."""
    around = [draft for draft in drafts if ops and ops <= set(draft.residual.ops)]
    return min(around, key=lambda draft: len(draft.residual.ops), default=None)


def build_branches(flow: Labelling, drafts: list[BranchDraft]) -> list[tuple[BranchDraft, Branch]]:
    """The branches of every module that adds a branch with a unit in it, in order of execution."""
    owners = {draft.owner.index for draft in drafts if draft.units}
    built: list[tuple[BranchDraft, Branch]] = []
    taken: set[str] = set()
    for draft in drafts:
        if draft.owner.index in owners:
            branch = _branch(flow, draft, taken)
            taken.add(branch.name)
            built.append((draft, branch))
    return built


def build_blocks(flow: Labelling, built: list[tuple[BranchDraft, Branch]]) -> tuple[BlockUnit, ...]:
    """One block for each module that adds branches."""
    by_owner: dict[int, list[tuple[BranchDraft, Branch]]] = {}
    for draft, branch in built:
        by_owner.setdefault(draft.owner.index, []).append((draft, branch))
    return tuple(
        BlockUnit(own[0][0].owner.path, _width(flow, own[0][0].residual), tuple(branch for _, branch in own))
        for own in by_owner.values()
    )


def _walk(flow: Labelling, draft: BranchDraft, children: dict[int, Call]) -> str | None:
    """Fill the draft's chain, from the add back to the stream; the reason where the path leaves the children."""
    residual, owner = draft.residual, draft.owner
    starts = {residual.entry, residual.skip, *owner.inputs}
    value, later = residual.delta, []
    while value not in starts:
        call = children.get(value)
        if call is None:
            op = flow.trace.ops[flow.trace.values[value].producer]
            return f"{flow.where(op)} is a step of the branch outside the child modules of {_name(owner)}"
        reason = _closed(flow, call, owner)
        if reason is not None:
            return reason
        later.append(call.path)
        value = call.inputs[0]
    draft.chain = later[::-1]
    return None


def _closed(flow: Labelling, call: Call, owner: Call) -> str | None:
    """Why a child's call is not a function of one tensor alone, or not the call of a direct child."""
    trace = flow.trace
    prefix = f"{owner.path}." if owner.path else ""
    if not call.path.startswith(prefix) or "." in call.path[len(prefix) :]:
        return f"{call.path} is not a direct child of {_name(owner)}"
    if call.extra:
        return f"{call.path} is called with more than the stream"
    for op in trace.ops[call.first_op : call.end_op]:
        for v in op.inputs:
            value = trace.values[v]
            if value.is_data and v != call.inputs[0] and value.producer < call.first_op:
                return f"{flow.where(op)} reads an activation that is not an input of {call.path}"
    return None


def _around(flow: Labelling, own: list[BranchDraft]) -> str | None:
    """Why a module is more than the sum of its residual branches."""
    owner = own[0].owner
    if len(owner.inputs) == 0 or owner.output is None:
        return f"{_name(owner)} does not map one stream to one stream"
    stream = owner.inputs[0]
    for draft in own:
        if not _only_identities(flow, draft.residual.skip, stream):
            return f"{_name(owner)} changes the stream before {flow.where(flow.trace.ops[draft.residual.op])}"
        stream = draft.residual.output
    if not _only_identities(flow, owner.output, stream):
        return f"{_name(owner)} goes on after its last residual add"
    return None


def _only_identities(flow: Labelling, value: int, origin: int) -> bool:
    """Whether `value` is `origin`, but for `nn.Identity` modules."""
    trace = flow.trace
    while value != origin:
        producer = trace.values[value].producer
        if producer < 0 or trace.path(trace.ops[producer]) not in trace.identities:
            return False
        value = trace.ops[producer].inputs[0]
    return True


def _branch(flow: Labelling, draft: BranchDraft, taken: set[str]) -> Branch:
    residual = draft.residual
    prefix = f"{draft.owner.path}." if draft.owner.path else ""
    name = draft.units[0] if len(draft.units) == 1 else f"{prefix}{residual.op}"
    if not draft.units and draft.chain:
        name = draft.chain[len(draft.chain) // 2]
    if name in taken:
        name = f"{name}#{residual.op}"
    return Branch(
        name=name,
        owner=draft.owner.path,
        chain=tuple(path[len(prefix) :] for path in draft.chain),
        macs=sum(flow.macs[op] for op in residual.ops),
        params=_params(flow, residual),
        reason=draft.reason,
    )


def _params(flow: Labelling, residual: Residual) -> int:
    """The number of parameters that a branch uses, those of its computed weights and biases included."""
    trace, found, seen = flow.trace, set(), set(residual.ops)
    todo = list(residual.ops)
    while todo:
        for v in trace.ops[todo.pop()].inputs:
            value = trace.values[v]
            if value.tensor in trace.parameters:
                found.add(value.tensor)
            elif not value.is_data and value.producer >= 0 and value.producer not in seen:
                seen.add(value.producer)
                todo.append(value.producer)
    return sum(trace.parameters[name] for name in found if name is not None)


def _width(flow: Labelling, residual: Residual) -> int:
    """The number of channels of the stream: the axis on which the branch's last projection makes its labels."""
    shape = flow.shape(residual.delta)
    for layer in flow.labels.get(residual.delta, ()):
        found = axes(layer)
        if len(found) == 1:
            return shape[next(iter(found))]
    return shape[-1]


def _name(owner: Call) -> str:
    return owner.path or "the model"
