"""Record one forward of a meta copy.

Three observers work together. Module hooks know which module is running. A function mode sees the host's own calls
(`x.reshape(B, N, self.num_heads, -1)`) with arguments that remember where they came from. A dispatch mode sees the aten
ops beneath. In inference mode torch does not break up `linear`, `matmul` or fused attention, so they arrive whole.
"""

from __future__ import annotations

import sys
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from usdcore.errors import UsdcoreError
from usdcore.units.flatten import tensors_in
from usdcore.units.host import Defaults, failing_line, host_line, words
from usdcore.units.macs import makes_rows
from usdcore.units.metacopy import meta_copy, meta_inputs, trace_attributes
from usdcore.units.modes import ObserveFunctions, ObserveOps, ordinary
from usdcore.units.places import Place, host_places
from usdcore.units.sizes import Expr, TracedInt, expression
from usdcore.units.trace import OUTSIDE, Call, Op, Ref, Trace, Value, numbers

if TYPE_CHECKING:
    from collections.abc import Callable

    from usdcore.units.execute import Executor


def record(model: nn.Module, example_inputs: Tensor | tuple[Tensor, ...], executor: Executor) -> Trace:
    """The trace of one forward of a weightless copy. Errors: the model can't be copied, or its forward fails."""
    recorder = Recorder(executor)
    inputs = meta_inputs(model, example_inputs)
    copied = meta_copy(model)
    modules = dict(copied.named_modules())
    recorder.trace.attributes = trace_attributes(modules, recorder.trace.ends)
    recorder.watch(modules, inputs)
    try:
        with torch.inference_mode(), ObserveFunctions(recorder), ObserveOps(recorder):
            output = copied(*inputs)
    except UsdcoreError:
        raise
    except Exception as error:
        shapes = ", ".join(str(list(x.shape)) for x in inputs)
        msg = (
            f"find_units: the forward of {type(model).__name__} fails without data, on inputs {shapes}, at "
            f"{failing_line(error)}: {type(error).__name__}: {str(error).rstrip('.')}. Check that example_inputs fit "
            f"the model, and that its forward does not branch on values"
        )
        raise UsdcoreError(msg) from error
    recorder.trace.outputs = tuple(recorder.value(t) for t in tensors_in(output))
    return recorder.trace


class Recorder:
    """Collects the trace. Tensors are known by identity, so each is kept alive until the recording ends."""

    def __init__(self, executor: Executor) -> None:
        self.trace = Trace(calls=[Call(0, "", 0, (), False, 0)])
        self.executor = executor
        self._values: dict[int, int] = {}
        self._alive: list[Tensor] = []
        self._stack = [0]
        self._numbers: list[int] = []
        self._is_matched = True
        self._defaults = Defaults()
        self._is_inside = False
        self._last: Op | None = None
        self._source: tuple[str, int] | None = None
        self._places: tuple[Place, ...] = ()

    def watch(self, modules: dict[str, nn.Module], inputs: tuple[Tensor, ...]) -> None:
        """Name the tensors of the copy's modules, and put hooks on these."""
        for kind in ("_parameters", "_buffers"):
            for path, module in modules.items():
                for own, tensor in getattr(module, kind).items():
                    if tensor is not None and id(tensor) not in self._values:
                        name = f"{path}.{own}" if path else own
                        self._new(tensor, name=name)
                        if kind == "_parameters":
                            self.trace.parameters[name] = tensor.numel()
        self.trace.inputs = tuple(self._new(x, is_data=True).index for x in inputs)
        self.trace.identities = frozenset(path for path, module in modules.items() if type(module) is nn.Identity)
        self.trace.classes = {path: type(module) for path, module in modules.items()}
        for path, module in modules.items():
            module.register_forward_pre_hook(partial(self._enter, path), with_kwargs=True)
            module.register_forward_hook(self._leave)

    def value(self, tensor: Tensor) -> int:
        """The value that a tensor holds now; a tensor of unknown origin is a constant."""
        index = self._values.get(id(tensor))
        return self._new(tensor).index if index is None else index

    def shape(self, tensor: Tensor) -> torch.Size:
        """The shape of a tensor, as ints that remember it."""
        value, ends = self.value(tensor), self.trace.ends
        return torch.Size([TracedInt.of(n, ("dim", value, axis), ends) for axis, n in enumerate(tensor.shape)])

    def begin(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """The host calls a torch function: remember its ints, and the line it is on."""
        found = numbers((args, kwargs))
        self._numbers = found if any(type(n) is TracedInt for n in found) else []
        self._is_matched = not self._numbers
        frame = sys._getframe(2)
        self._source, self._places = host_line(frame), host_places(frame)

    def end(self) -> None:
        """The call is over: ints that no op took as they were are noted on its last op."""
        if not self._is_matched and self._last is not None:
            self._last.loose = tuple(expression(n) for n in self._numbers if type(n) is TracedInt)
        self._numbers, self._is_matched, self._source, self._places, self._last = [], True, None, (), None

    def parts(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], run: Callable[[], Any]) -> Any:
        """Run a composite op part by part; note it as a whole too, as torch works out the sizes of the parts."""
        if self._is_inside:
            return run()
        refs = {id(t): Ref(self.value(t)) for t in tensors_in((args, kwargs))}
        first, self._is_inside = len(self.trace.ops), True
        out = run()
        self._is_inside = False
        if len(self.trace.ops) > first:
            made = tuple(self.value(t) for t in tensors_in(out))
            self.trace.wholes.append(self._op(first, func, args, kwargs, refs, made))
            self._note_rows(self.trace.wholes[-1])
        return out

    def op(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Run and record one op; an op that returns its own input (a dropout that is off) returns an alias of it."""
        given = tensors_in((args, kwargs))
        if any(t.is_meta for t in given) or any(t.is_inference() for t in given):
            out = self.executor.run(func, args, kwargs)
        else:
            with ordinary():
                out = self.executor.run(func, args, kwargs)
        written = _written(func, args, kwargs) if func._schema.is_mutable else []
        if isinstance(out, Tensor) and not written and any(out is t for t in given):
            out = torch.ops.aten.alias.default(out)
        made = tensors_in(out)
        if made or written:
            self._record(func, args, kwargs, given, [*made, *(t for t in written if not any(t is m for m in made))])
        return out

    def _record(
        self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], given: list[Tensor], made: list[Tensor]
    ) -> None:
        trace = self.trace
        inputs = [self.value(t) for t in given]
        index, is_data = len(trace.ops), any(trace.values[v].is_data for v in inputs)
        refs = {id(t): Ref(v) for t, v in zip(given, inputs, strict=True)}
        stale = self._views_of([t for t in made if id(t) in refs])
        before = [self.value(t) for t in stale]
        outputs = [self._new(t, producer=index, is_data=is_data).index for t in made]
        for tensor, old in zip(stale, before, strict=True):
            value = self._new(tensor, producer=index, is_data=is_data or trace.values[old].is_data)
            value.overwrites = old
            outputs.append(value.index)
        op = self._op(index, func, args, kwargs, refs, tuple(outputs))
        op.overwritten = tuple(before)
        trace.ops.append(op)
        self._note_rows(op)

    def _note_rows(self, op: Op) -> None:
        """Mark what an op makes that has a row for each sample, though it does not depend on the input."""
        made = [self.trace.values[v] for v in op.outputs]
        if not all(value.is_data for value in made) and makes_rows(self.trace, op):
            for value in made:
                value.is_rows = not value.is_data

    def _op(
        self,
        index: int,
        func: Any,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        refs: dict[int, Ref],
        outputs: tuple[int, ...],
    ) -> Op:
        name = func.overloadpacket.__name__
        self._last = Op(
            index=index,
            name=name[:-1] if name.endswith("_") and not name.endswith("__") else name,
            func=func,
            args=_referred(args, refs),
            kwargs=_referred(kwargs, refs),
            inputs=tuple([ref.value for ref in refs.values()]),
            outputs=outputs,
            call=self._stack[-1],
            source=words(*self._source) if self._source else "",
            sizes={} if self._is_inside else self._sizes(args, kwargs),
            is_part=self._is_inside,
            places=self._places,
        )
        return self._last

    def _new(self, tensor: Tensor, producer: int = OUTSIDE, is_data: bool = False, name: str | None = None) -> Value:
        value = Value(len(self.trace.values), tuple(tensor.shape), tensor.dtype, producer, is_data, name)
        self.trace.values.append(value)
        self._values[id(tensor)] = value.index
        self._alive.append(tensor)
        return value

    def _views_of(self, written: list[Tensor]) -> list[Tensor]:
        """The other tensors that share memory with tensors that are written in place."""
        if not written:
            return []
        memory = {t.untyped_storage()._cdata for t in written}
        own = {id(t) for t in written}
        found = {id(t): t for t in self._alive if t.untyped_storage()._cdata in memory}
        return [t for key, t in found.items() if key not in own]

    def _sizes(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[int, Expr]:
        """Match the ints of the host's call with those of the op: they are a run of them."""
        host = self._numbers
        if not host:
            return {}
        own = numbers((args, kwargs))
        starts = [i for i in range(len(own) - len(host) + 1) if own[i : i + len(host)] == host]
        if len(starts) != 1:
            return {}
        self._is_matched = True
        return {starts[0] + i: expression(n) for i, n in enumerate(host)}

    def _enter(self, path: str, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        given = tensors_in((args, kwargs)) if kwargs or len(args) != 1 else tensors_in(args[0])
        inputs = tuple([self.value(t) for t in given])
        extra = len(given) != 1 or not args or args[0] is not given[0] or not self._defaults.hold(module, args, kwargs)
        trace = self.trace
        call = Call(len(trace.calls), path, self._stack[-1], inputs, extra, len(trace.ops))
        call.places = host_places(sys._getframe(1))
        trace.calls.append(call)
        self._stack.append(call.index)

    def _leave(self, module: nn.Module, args: tuple[Any, ...], output: Any) -> Any:
        call = self.trace.calls[self._stack[-1]]
        if isinstance(output, Tensor):
            if self.value(output) in call.inputs:  # an identity is a step of its own, so that a chain can be followed
                output = torch.ops.aten.alias.default(output)
            call.output = self.value(output)
        call.end_op = len(self.trace.ops)
        self._stack.pop()
        return output


def _written(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> list[Tensor]:
    arguments = func._schema.arguments
    named = [(a, args[i] if i < len(args) else kwargs.get(a.name)) for i, a in enumerate(arguments)]
    return [t for a, t in named if isinstance(t, Tensor) and a.alias_info is not None and a.alias_info.is_write]


def _referred(arguments: Any, refs: dict[int, Ref]) -> Any:
    if isinstance(arguments, Tensor):
        return refs[id(arguments)]
    if isinstance(arguments, (tuple, list)):
        return type(arguments)([_referred(a, refs) for a in arguments])
    if isinstance(arguments, dict):
        return {name: _referred(a, refs) for name, a in arguments.items()}
    return arguments
