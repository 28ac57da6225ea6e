"""What depends on what: ancestors, residual adds, and the networkx graph that `Units.graph` shows.

Ancestors are bit masks over values (Python ints of any length), so each question is one `&`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import networkx as nx

if TYPE_CHECKING:
    from usdcore.units.trace import Op, Trace


@dataclass(frozen=True, slots=True)
class Residual:
    """An add of a stream and a branch that starts from it: `entry` is the stream's value, `delta` the branch's.

    `skip` is the operand of the add; where it is not `entry` itself, only identities lie between. `ops` is the branch.
    """

    op: int
    entry: int
    skip: int
    delta: int
    output: int
    ops: tuple[int, ...]


class Ancestry:
    """For each value, the values that it is computed from, itself included."""

    def __init__(self, trace: Trace) -> None:
        self.trace = trace
        self.masks = [1 << value.index for value in trace.values]
        for op in trace.ops:
            mask = 0
            for value in (*op.inputs, *op.overwritten):
                mask |= self.masks[value]
            for value in op.outputs:
                self.masks[value] |= mask

    def is_from(self, value: int, origin: int) -> bool:
        """Whether `value` is computed from `origin`, or is it."""
        return bool(self.masks[value] >> origin & 1)

    def between(self, entry: int, exit_: int) -> tuple[int, ...]:
        """The ops through which `exit_` depends on `entry`."""
        values, inside = self.trace.values, self.masks[exit_]
        found = {
            values[v].producer for v in range(entry + 1, exit_ + 1) if inside >> v & 1 and self.masks[v] >> entry & 1
        }
        return tuple(sorted(found))

    def before(self, value: int) -> int:
        """The value that `value` is an alias of, through any number of identities."""
        producer = self.trace.values[value].producer
        while producer >= 0 and self.trace.ops[producer].name == "alias":
            value = self.trace.ops[producer].inputs[0]
            producer = self.trace.values[value].producer
        return value


def residuals(ancestry: Ancestry) -> dict[int, Residual]:
    """The residual adds of a trace, by op: two operands of one shape, one of which is computed from the other."""
    found: dict[int, Residual] = {}
    for op in ancestry.trace.ops:
        residual = _residual(ancestry, op) if op.name == "add" else None
        if residual is not None:
            found[op.index] = residual
    return found


def _residual(ancestry: Ancestry, op: Op) -> Residual | None:
    values = ancestry.trace.values
    operands = op.inputs[:2]
    if len(operands) < 2 or not all(values[v].is_data for v in operands):
        return None
    if values[operands[0]].shape != values[operands[1]].shape or op.kwargs.get("alpha", 1) != 1:
        return None
    for skip, delta in (operands, operands[::-1]):
        entry = ancestry.before(skip)
        if ancestry.before(delta) != entry and ancestry.is_from(delta, entry):
            ops = ancestry.between(entry, delta)
            return Residual(op.index, entry, skip, delta, op.outputs[0], ops)
    return None


def build_graph(trace: Trace, macs: list[int]) -> nx.DiGraph[Any]:
    """The dataflow as a graph of plain data.

    Nodes: `"input:0"`, parameters and buffers by name, and ops as `"12:linear"`; each has `kind` (input, tensor,
    constant, op), and an op has `op`, `module`, `shapes` (of its outputs), `macs` (per sample) and `source`.
    Edges follow the data.
    """
    graph: nx.DiGraph[Any] = nx.DiGraph()
    names = {value: f"input:{i}" for i, value in enumerate(trace.inputs)}
    for value, name in names.items():
        graph.add_node(name, kind="input", shapes=(trace.values[value].shape,))
    for op in trace.ops:
        node = f"{op.index}:{op.name}"
        shapes = tuple(trace.values[v].shape for v in op.outputs)
        graph.add_node(
            node, kind="op", op=op.name, module=trace.path(op), shapes=shapes, macs=macs[op.index], source=op.source
        )
        for v in (*op.inputs, *op.overwritten):
            if v not in names:
                tensor = trace.values[v].tensor
                names[v] = tensor or f"constant:{v}"
                kind = "tensor" if tensor else "constant"
                graph.add_node(names[v], kind=kind, shapes=(trace.values[v].shape,))
            graph.add_edge(names[v], node)
        names.update(dict.fromkeys(op.outputs, node))
    return graph
