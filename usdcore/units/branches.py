"""Residual branches, and the blocks that add them to the stream.

A branch can be gated or removed when the module that adds it writes the sum as one expression, `x + branch of x`, in a
method whose source can be compiled again (see `usdcore.rewrite`): `x + self.drop_path(self.gamma * self.attn(x))`.
What the branch computes must stand in that expression, and depend on no other activation. Anything else is a reason why
it can't be gated.
"""

from __future__ import annotations

from bisect import bisect_left
from collections import Counter
from dataclasses import dataclass, field
from itertools import islice, takewhile
from typing import TYPE_CHECKING

from usdcore import rewrite
from usdcore.units.layers import axes
from usdcore.units.macs import is_constant
from usdcore.units.metacopy import BATCH
from usdcore.units.owned import Owned
from usdcore.units.trace import Ref
from usdcore.units.types import BlockUnit, Branch

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from usdcore.rewrite import Span, Sum
    from usdcore.units.graph import Residual
    from usdcore.units.labelling import Labelling
    from usdcore.units.places import Place
    from usdcore.units.trace import Call, Op, Trace


@dataclass(slots=True, eq=False)
class BranchDraft:
    """A residual add, the expression that makes it, and the names of the units inside its branch.

    `calls` are the module calls that the branch makes, `ops` all that it runs: also what only computes its weights.
    """

    residual: Residual
    owner: Call
    sum: Sum | None = None
    calls: list[Call] = field(default_factory=list)
    ops: frozenset[int] = frozenset()
    reason: str | None = None
    units: list[str] = field(default_factory=list)


def branch_drafts(flow: Labelling) -> list[BranchDraft]:
    """One draft for each residual add, in order of execution."""
    trace = flow.trace
    times = Counter(call.path for call in trace.calls)
    drafts = [BranchDraft(r, trace.calls[trace.ops[r.op].call]) for r in flow.residuals.values()]
    for draft in drafts:
        found = _sum(flow, draft) if times[draft.owner.path] == 1 else f"{_name(draft.owner)} runs more than once"
        if isinstance(found, str):
            draft.reason = found
            continue
        draft.sum = found
        kind, inside = trace.classes[draft.owner.path], _called_by(trace, draft.owner)
        draft.calls = [c for c in inside if _is_part_of(_in_method(c.places, kind, found.function), found)]
        draft.reason = _closed(flow, draft)
    users = _users(trace)
    for draft in drafts:
        draft.ops = _all_ops(trace, draft, users)
    written = Counter((draft.owner.index, draft.sum) for draft in drafts)
    for draft in drafts:
        if draft.sum is not None and written[draft.owner.index, draft.sum] > 1:
            draft.reason = f"{_name(draft.owner)} adds it in a loop, with one expression for several branches"
    return sorted(drafts, key=lambda draft: draft.residual.op)


def innermost(drafts: list[BranchDraft], ops: set[int]) -> BranchDraft | None:
    """The smallest branch that holds all of some ops."""
    around = [draft for draft in drafts if ops and ops <= draft.ops]
    return min(around, key=lambda draft: len(draft.residual.ops), default=None)


def build_branches(flow: Labelling, drafts: list[BranchDraft]) -> list[tuple[BranchDraft, Branch]]:
    """The branches of every module that adds a branch with a unit in it, in order of execution."""
    owners = {draft.owner.index for draft in drafts if draft.units}
    built: list[tuple[BranchDraft, Branch]] = []
    owned, constant = Owned(flow.trace), constant_ops(flow.trace)
    taken: set[str] = set()
    for draft in drafts:
        if draft.owner.index in owners:
            branch = _branch(flow, draft, taken, owned, constant)
            taken.add(branch.name)
            built.append((draft, branch))
    return built


def build_blocks(flow: Labelling, built: list[tuple[BranchDraft, Branch]]) -> tuple[BlockUnit, ...]:
    """One block for each module that adds branches."""
    by_owner: dict[int, list[tuple[BranchDraft, Branch]]] = {}
    for draft, branch in built:
        by_owner.setdefault(draft.owner.index, []).append((draft, branch))
    blocks = []
    for own in by_owner.values():
        owner, residual = own[0][0].owner, own[0][0].residual
        reason = next((draft.reason for draft, _ in own if draft.reason), None) or _around(flow, [d for d, _ in own])
        axis = _channel_axis(flow, residual)
        shape = flow.shape(owner.inputs[0]) if owner.inputs else flow.shape(residual.delta)
        if len(shape) != len(flow.shape(residual.delta)):
            axis = 1 if len(shape) == 4 else -1
        num_tokens = shape[1] if len(shape) == 3 else None
        branches = tuple(branch for _, branch in own)
        blocks.append(BlockUnit(owner.path, shape[axis], branches, axis, reason, num_tokens))
    return tuple(blocks)


def _sum(flow: Labelling, draft: BranchDraft) -> Sum | str:
    """The expression of a residual add, or why it can't be changed."""
    trace, owner = flow.trace, draft.owner
    op = trace.ops[draft.residual.op]
    place = op.places[0] if op.places else None
    if place is None or place.span is None:
        return f"it is not known where {flow.where(op)} is written"
    kind = trace.classes[owner.path]
    function = rewrite.method_of(kind, place.code)
    if function is None:
        return f"{flow.where(op)} is not in a method of {_name(owner)}"
    if (why := rewrite.why_not(kind, function)) is not None:
        return f"{why}, at {flow.where(op)}"
    steps = []
    for index in draft.residual.ops:
        step = _step(trace, trace.ops[index], draft.owner, function)
        if step is not None:
            steps.append(step)
        elif trace.ops[index].name != "alias":  # an identity before the method
            return f"{flow.where(trace.ops[index])} is a step of the branch outside the method that adds it"
    found = rewrite.sum_at(kind, function, place.span, int(op.args[0] != Ref(draft.residual.skip)), steps)
    return f"{found}, at {flow.where(op)}" if isinstance(found, str) else found


def _step(trace: Trace, op: Op, owner: Call, function: str) -> Span | None:
    """Which expression of a method of `owner` runs an op; None if it is not run by that method."""
    places, parent = op.places, op.call
    while parent != owner.index:
        call = trace.calls[parent]
        if call.index == call.parent:
            return None
        places, parent = call.places, call.parent
    return _in_method(places, trace.classes[owner.path], function)


def _in_method(places: Iterable[Place], kind: type, function: str) -> Span | None:
    return next((p.span for p in places if rewrite.method_of(kind, p.code) == function), None)


def _called_by(trace: Trace, owner: Call) -> Iterator[Call]:
    """The module calls that a call makes itself; those within it are the next ones in the record."""
    within = takewhile(lambda call: call.parent >= owner.index, islice(trace.calls, owner.index + 1, None))
    return (call for call in within if call.parent == owner.index)


def _is_part_of(span: Span | None, found: Sum) -> bool:
    return span is not None and any(rewrite.covers(part, span) for part in found.parts)


def _closed(flow: Labelling, draft: BranchDraft) -> str | None:
    """Why a branch reads more than the stream."""
    trace, residual = flow.trace, draft.residual
    own = {v for op in residual.ops for v in trace.ops[op].outputs}
    for index in residual.ops:
        op = trace.ops[index]
        for v in op.inputs:
            if trace.values[v].is_data and v not in own and flow.ancestry.before(v) != residual.entry:
                return f"{flow.where(op)} reads an activation that is not the stream"
    return None


def _around(flow: Labelling, own: list[BranchDraft]) -> str | None:
    """Why a module is more than the sum of its residual branches."""
    owner, trace = own[0].owner, flow.trace
    if len(owner.inputs) == 0 or owner.output is None:
        return f"{_name(owner)} does not map one stream to one stream"
    if any(trace.values[v].is_data or trace.values[v].shape[:1] == (BATCH,) for v in owner.inputs[1:]):
        return f"{_name(owner)} is called with more than the stream"
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


def _branch(flow: Labelling, draft: BranchDraft, taken: set[str], owned: Owned, constant: frozenset[int]) -> Branch:
    name = branch_name(flow, draft)
    if name in taken:
        name = f"{name}#{_line(flow, draft)}"
    modules, tensors = owned.of(draft.ops, draft.calls)
    return Branch(
        name=name,
        owner=draft.owner.path,
        sum=draft.sum,
        modules=modules,
        tensors=tensors,
        macs=sum(flow.macs[op] for op in draft.ops),
        constant_macs=sum(flow.macs[op] for op in draft.ops & constant),
        params=owned.params(modules, tensors),
        reason=draft.reason,
    )


def branch_name(flow: Labelling, draft: BranchDraft) -> str:
    """The module that the owner calls first for work that counts; where it calls none, the line of the sum.

    Neither depends on what else the model has, nor on sizes, so that the names in a plan stay whatever else goes.
    """
    found = first_called(flow, draft.owner, draft.residual.ops)
    if found is not None:
        return found
    prefix = f"{draft.owner.path}." if draft.owner.path else ""
    return f"{prefix}{draft.sum.function if draft.sum else 'sum'}#{_line(flow, draft)}"


def first_called(flow: Labelling, owner: Call, ops: Iterable[int]) -> str | None:
    """The module that `owner` calls first to run some of these ops that cost anything; None if there is none."""
    paid = sorted(op for op in ops if flow.macs[op])
    for call in flow.trace.calls[1:]:
        if call.parent == owner.index and bisect_left(paid, call.first_op) < bisect_left(paid, call.end_op):
            return call.path
    return None


def _line(flow: Labelling, draft: BranchDraft) -> int:
    """The line of the sum, from the first line of its method."""
    place = next(iter(flow.trace.ops[draft.residual.op].places), None)
    return 0 if place is None or place.span is None else place.span.line - place.code.co_firstlineno


def constant_ops(trace: Trace) -> frozenset[int]:
    """The ops that run once for a batch of any size."""
    return frozenset(op.index for op in trace.ops if is_constant(trace, op))


def _users(trace: Trace) -> dict[int, set[int]]:
    """For each op that does not depend on the input, in reverse order of execution, the ops that use what it makes."""
    constant = [op.index for op in trace.ops if op.outputs and not trace.values[op.outputs[0]].is_data]
    found: dict[int, set[int]] = {index: set() for index in reversed(constant)}
    for op in trace.ops:
        for v in op.inputs:
            if trace.values[v].producer in found:
                found[trace.values[v].producer].add(op.index)
    return found


def _all_ops(trace: Trace, draft: BranchDraft, users: dict[int, set[int]]) -> frozenset[int]:
    """The ops on the way from the stream to the sum, what else its calls run, and what is computed for these alone."""
    inside = set(draft.residual.ops)
    for call in draft.calls:
        inside.update(range(call.first_op, call.end_op))
    for index, used in users.items():
        if used and used <= inside:
            inside.add(index)
    return frozenset(inside)


def _channel_axis(flow: Labelling, residual: Residual) -> int:
    """The axis of the stream's channels, on which the branch's last projection makes its labels: -1, or 1 of NCHW."""
    for layer in flow.labels.get(residual.delta, ()):
        found = axes(layer)
        if len(found) == 1:
            axis = next(iter(found))
            return -1 if axis == layer.ndim - 1 else axis
    return -1


def _name(owner: Call) -> str:
    return owner.path or "the model"
