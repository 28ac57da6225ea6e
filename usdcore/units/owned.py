"""What a residual branch has to itself: the modules that nothing else calls, the tensors that nothing else reads."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator, Sequence

    from usdcore.units.trace import Call, Trace


class Owned:
    """Who calls each module and who reads each tensor, gathered once for all branches of a trace."""

    def __init__(self, trace: Trace) -> None:
        self.trace = trace
        self._calls: dict[str, list[Call]] = {}
        self._readers: dict[str, set[int]] = {}
        self._inside: dict[str, set[str]] = {}
        for call in trace.calls:
            for path in _around(call.path):
                self._calls.setdefault(path, []).append(call)
        for op in trace.ops:
            for value in op.inputs:
                if (tensor := trace.values[value].tensor) is not None:
                    self._readers.setdefault(tensor, set()).add(op.index)
        for tensor in self._readers.keys() | trace.parameters.keys():
            for path in _around(tensor):
                self._inside.setdefault(path, set()).add(tensor)

    def of(self, ops: frozenset[int], calls: Sequence[Call]) -> tuple[tuple[str, ...], tuple[str, ...]]:
        """Of a branch that runs `ops` and makes `calls`: the modules that only it calls, and the other parameters and
        buffers that only it reads.
        """
        modules = [path for path in dict.fromkeys(call.path for call in calls) if self._is_own(path, ops, calls)]
        values = self.trace.values
        read = {values[v].tensor for op in ops for v in self.trace.ops[op].inputs} - {None}
        gone = tuple(f"{path}." for path in modules)
        own = (name for name in read if name is not None and self._readers[name] <= ops)
        return tuple(modules), tuple(sorted(name for name in own if not name.startswith(gone)))

    def params(self, modules: Collection[str], tensors: Collection[str]) -> int:
        """The number of parameters of some modules, and among some tensors."""
        names = set(tensors).union(*(self._inside.get(path, ()) for path in modules))
        return sum(self.trace.parameters.get(name, 0) for name in names)

    def _is_own(self, path: str, ops: frozenset[int], calls: Sequence[Call]) -> bool:
        if not all(any(_is_part(call, of) for of in calls) for call in self._calls[path]):
            return False
        return all(self._readers.get(tensor, ops) <= ops for tensor in self._inside.get(path, ()))


def _around(path: str) -> Iterator[str]:
    """A path and those of the modules around it, without the model itself."""
    while path:
        yield path
        path = path.rpartition(".")[0]


def _is_part(call: Call, of: Call) -> bool:
    return call.index == of.index or of.first_op <= call.first_op < call.end_op <= of.end_op
