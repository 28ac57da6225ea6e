"""Change single expressions in the methods of a host, where its code can't do without.

Some hosts write a size into their code that must follow when entries go (`x.reshape(B, N, C)`), and a residual branch
is added somewhere in a method. An `Edit` names one such expression by its place in the source. `edit` gives a module a
class derived from its own, in which that one method is compiled again from the host's own source with the expression
changed: names, parameters, state dict, line numbers in tracebacks, `isinstance`, deepcopy and pickling stay. The edits
are stored nowhere: they follow from the model and its plan, so they are found again when a model is loaded.
"""

from __future__ import annotations

import ast
from functools import cache, lru_cache
from typing import TYPE_CHECKING, Any

from usdcore.errors import UsdcoreError
from usdcore.rewrite.change import arguments_of, change, is_call_at
from usdcore.rewrite.source import HELPER, MARK, UnreadableError, compiled, copied, host_method, method_of, source_tree
from usdcore.rewrite.sums import covers, find_sum
from usdcore.rewrite.types import Edit, Span, Sum, child_of

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from torch import nn

    Helper = Callable[..., Any] | None

__all__ = [
    "Edit",
    "Span",
    "Sum",
    "child_of",
    "covers",
    "edit",
    "is_call",
    "method_of",
    "original",
    "size_argument",
    "sum_at",
    "unedit",
    "why_not",
]


def why_not(kind: type, function: str) -> str | None:
    """Why a method can't be compiled again; None if it can."""
    try:
        source_tree(host_method(kind, function))
    except UnreadableError as problem:
        return str(problem)
    return None


def size_argument(kind: type, function: str, span: Span, number: int, count: int) -> int | None:
    """Which argument of a call gives number `number` of its `count` sizes; None where it is no expression of its own.

    A tuple's elements count one by one, and so does the tensor of `torch.reshape(x, sizes)`.
    """
    found = _call_at(source_tree(host_method(kind, function)), span)
    before = -1 if found is None else len(arguments_of(found)) - count
    return number + before if before in (0, 1) else None


def is_call(kind: type, function: str, span: Span) -> bool:
    """Whether a call stands at a place of a method."""
    return _call_at(source_tree(host_method(kind, function)), span) is not None


@lru_cache(maxsize=1024)
def _call_at(tree: ast.FunctionDef, span: Span) -> ast.Call | None:
    return next((n for n in ast.walk(tree) if isinstance(n, ast.Call) and is_call_at(n, span)), None)


def sum_at(kind: type, function: str, span: Span, skip: int, steps: Iterable[Span]) -> Sum | str:
    """The sum at a place of a method, or why its branch can't be told from the rest of the method.

    `skip` is the stream's operand (0 left, 1 right), and `steps` are the expressions in the method that the branch
    consists of.
    """
    own = tuple(dict.fromkeys(steps))  # blocks of one class ask for the same
    return find_sum(source_tree(host_method(kind, function)), function, span, skip, own)


def edit(module: nn.Module, edits: Iterable[Edit], helper: Helper = None) -> None:
    """Apply edits to a module in place, beside those that it has already. `helper` is what `gate` calls."""
    base, known = original(type(module))
    _set(module, base, known | frozenset(edits), helper)


def unedit(module: nn.Module, kind: str) -> None:
    """Take the edits of one kind off again, in place."""
    base, known = original(type(module))
    _set(module, base, frozenset(e for e in known if e.kind != kind), None)


def original(kind: type) -> tuple[type, frozenset[Edit]]:
    """The host's class behind an edited one, and the edits; a class that is the host's own has none."""
    found: tuple[type, frozenset[Edit]] = kind.__dict__.get(MARK, (kind, frozenset()))
    return found


def _set(module: nn.Module, base: type, edits: frozenset[Edit], helper: Helper) -> None:
    helper = helper or getattr(type(module), HELPER, None)
    module.__class__ = _edited(base, edits, helper) if edits else base


@cache
def _edited(base: type, edits: frozenset[Edit], helper: Helper) -> type:
    body: dict[str, Any] = {
        "__module__": base.__module__,
        "__doc__": base.__doc__,
        "__qualname__": base.__qualname__,
        "__reduce_ex__": _reduce,
        MARK: (base, edits),
    }
    if helper is not None:
        body[HELPER] = staticmethod(helper)
    for function in {e.function for e in edits}:
        host = host_method(base, function)
        tree = copied(source_tree(host))
        left = change(tree, frozenset(e for e in edits if e.function == function))
        if left:
            msg = f"{base.__qualname__}.{function}: its code has not got the expression at {min(left).span}"
            raise UsdcoreError(msg)
        body[function] = compiled(tree, host, helper)
    return type(base.__name__, (base,), body)


def _reduce(self: Any, protocol: Any) -> Any:
    base, edits = original(type(self))
    return _remade, (base, edits, getattr(type(self), HELPER, None)), self.__getstate__()


def _remade(base: type, edits: frozenset[Edit], helper: Helper) -> Any:
    kind = _edited(base, edits, helper)
    return object.__new__(kind)
