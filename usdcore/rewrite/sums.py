"""Which part of a method is a residual branch: the sum `x + branch(x)`, and the statements that prepare it.

    y = self.attn(self.norm(x), rope=rope)
    if self.gamma is not None:
        y = self.gamma * y
    x = x + self.drop_path(y)

Here the branch is the expression `self.drop_path(y)` and the two statements before it; it starts from `x`.
"""

from __future__ import annotations

import ast
from functools import lru_cache
from typing import TYPE_CHECKING

from usdcore.rewrite.source import own_name, span
from usdcore.rewrite.types import Span, Sum

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

# What a statement may not hold that becomes part of a function of its own.
_FIXED = (
    ast.Return,
    ast.Yield,
    ast.YieldFrom,
    ast.Await,
    ast.Break,
    ast.Continue,
    ast.Global,
    ast.Nonlocal,
    ast.Delete,
)


@lru_cache(maxsize=1024)
def find_sum(tree: ast.FunctionDef, function: str, place: Span, skip: int, steps: tuple[Span, ...]) -> Sum | str:
    """The sum at a place of a method's definition, or why its branch can't be told from the rest of the method.

    `skip` is the stream's operand, and `steps` are the expressions in the method that the branch consists of.
    """
    node = _sum_node(tree, place)
    if node is None:
        return "its sum is not written as `a + b`"
    operands = operands_of(node)
    if operands is None:
        return "it is added to something that is not a variable"
    branch = operands[1 - skip]
    before = _statements(tree, node, branch, steps)
    if isinstance(before, str):
        return before
    chosen, live = _needed(branch, before)
    parts = (span(branch), *(span(statement) for statement in chosen))
    if any(not any(covers(part, step) for part in parts) for step in steps):
        return "a step of its branch stands apart from the sum"
    if any(_is_fixed(n) for part in (branch, *chosen) for n in ast.walk(part)):
        return "its branch can't become a function of its own"
    stream = _stream(tree, operands[skip], live)
    if stream is None:
        return "its branch does not start from one variable"
    odd = _odd(tree, node, operands[skip], chosen, before, live - {stream}, stream)
    options = tuple(sorted(live & set(_arguments(tree)[2:]) - {stream}))
    return odd or Sum(function, place, skip, parts, stream, options)


def operands_of(node: ast.BinOp | ast.AugAssign) -> list[ast.expr] | None:
    """The two operands of a sum; None where it is added to what is not a variable."""
    if isinstance(node, ast.BinOp):
        return [node.left, node.right]
    if not isinstance(node.target, ast.Name):
        return None
    return [ast.copy_location(ast.Name(node.target.id, ast.Load()), node.target), node.value]


def covers(outer: Span, inner: Span) -> bool:
    """Whether one piece of source holds another."""
    starts = (outer.line, outer.column) <= (inner.line, inner.column)
    return starts and (inner.end_line, inner.end_column) <= (outer.end_line, outer.end_column)


def bodies(tree: ast.AST) -> Iterator[list[ast.stmt]]:
    """Every list of statements in a tree."""
    for node in ast.walk(tree):
        for name in ("body", "orelse", "finalbody"):
            found = getattr(node, name, None)
            if isinstance(found, list) and found and isinstance(found[0], ast.stmt):
                yield found


def _sum_node(tree: ast.FunctionDef, place: Span) -> ast.BinOp | ast.AugAssign | None:
    for node in ast.walk(tree):
        if isinstance(node, ast.BinOp | ast.AugAssign) and isinstance(node.op, ast.Add) and span(node) == place:
            return node
    return None


def _home(tree: ast.FunctionDef, node: ast.AST) -> tuple[list[ast.stmt], int]:
    """The innermost list of statements that holds a node, and the number of the statement that does."""
    held = [
        (body, i)
        for body in bodies(tree)
        for i, statement in enumerate(body)
        if any(node is n for n in ast.walk(statement))
    ]
    return held[-1]


def _statements(tree: ast.FunctionDef, node: ast.AST, branch: ast.expr, steps: Iterable[Span]) -> list[ast.stmt] | str:
    """The statements before the sum's, in its own list of statements, from the first step of the branch on."""
    body, last = _home(tree, node)
    first = last
    for step in steps:
        if covers(span(branch), step):
            continue
        found = [i for i, statement in enumerate(body[:last]) if covers(span(statement), step)]
        if not found:
            return "a step of its branch stands apart from the sum"
        first = min(first, found[0])
    return body[first:last]


def _needed(branch: ast.expr, before: list[ast.stmt]) -> tuple[list[ast.stmt], set[str]]:
    """The statements whose results the branch uses, and the variables that it then starts from."""
    chosen: list[ast.stmt] = []
    live = _names(branch, ast.Load) - _names(branch, ast.Store)
    for statement in reversed(before):
        if _names(statement, ast.Store) & live:
            chosen.insert(0, statement)
            if isinstance(statement, ast.Assign):
                live -= _names(statement, ast.Store)
            live |= _names(statement, ast.Load)
    return chosen, live


def _stream(tree: ast.FunctionDef, skip: ast.expr, live: set[str]) -> str | None:
    """The variable that the branch starts from: the one that is also the other operand, or the only one there is."""
    arguments = _arguments(tree)
    local = live & ({*arguments} | _names(tree, ast.Store)) - {own_name(tree)}
    shared = _names(skip, ast.Load) & local
    given = set(arguments[2:]) - _names(tree, ast.Store)  # options that the method only hands on
    found = shared or local - given
    return next(iter(found)) if len(found) == 1 else None


def _arguments(tree: ast.FunctionDef) -> list[str]:
    return [a.arg for a in (*tree.args.posonlyargs, *tree.args.args, *tree.args.kwonlyargs)]


def _odd(
    tree: ast.FunctionDef,
    node: ast.BinOp | ast.AugAssign,
    skip: ast.expr,
    chosen: list[ast.stmt],
    before: list[ast.stmt],
    other: set[str],
    stream: str,
) -> str | None:
    """Why a branch can't become a function of its own: what it shares with the code around it."""
    stored = _names(tree, ast.Store)
    made = {name for statement in chosen for name in _names(statement, ast.Store)}
    beside = [statement for statement in before if not any(statement is c for c in chosen)]
    between = {name for statement in before for name in _names(statement, ast.Store)}
    computed = sorted(other & (stored - set(_arguments(tree)[2:]) | between))
    if computed:
        return f"its branch reads {computed[0]}, which the method computes before"
    is_skip = isinstance(skip, ast.Name) and skip.id == stream
    if not is_skip and any(stream in _names(statement, ast.Store) for statement in beside):
        return f"the method changes {stream} while the branch is computed"
    for name in sorted(made):
        read_beside = any(name in _names(statement, ast.Load) for statement in beside)
        if (name in _names(skip, ast.Load) and name != stream) or read_beside or _read_after(tree, node, name):
            return f"the method reads {name} of the branch elsewhere"
    if is_skip and stream in made:
        return f"the method changes {stream} while the branch is computed"
    return None


def _read_after(tree: ast.FunctionDef, node: ast.BinOp | ast.AugAssign, name: str) -> bool:
    """Whether a variable is read after a sum before it is set anew."""
    body, own = _home(tree, node)
    for i, statement in enumerate(body[own:]):
        if i > 0 and name in _names(statement, ast.Load):
            return True
        if isinstance(statement, ast.Assign | ast.AugAssign) and name in _names(statement, ast.Store):
            return False
    end = span(body[-1])
    reads = (n for n in ast.walk(tree) if isinstance(n, ast.Name) and n.id == name and isinstance(n.ctx, ast.Load))
    return any((n.lineno, n.col_offset) >= (end.end_line, end.end_column) for n in reads)


def _is_fixed(node: ast.AST) -> bool:
    """Whether code means something else in a function of its own; `super()` reads its function's first argument."""
    is_super = isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "super"
    return is_super or isinstance(node, _FIXED)


def _names(node: ast.AST, context: type[ast.expr_context]) -> set[str]:
    names = {n.id for n in ast.walk(node) if isinstance(n, ast.Name) and isinstance(n.ctx, context)}
    if context is ast.Load:
        names |= {
            n.target.id for n in ast.walk(node) if isinstance(n, ast.AugAssign) and isinstance(n.target, ast.Name)
        }
    return names
