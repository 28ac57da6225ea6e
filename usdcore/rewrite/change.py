"""Apply edits to the syntax tree of a method."""

from __future__ import annotations

import ast
from typing import TYPE_CHECKING

from usdcore.rewrite.source import HELPER, own_name, span
from usdcore.rewrite.sums import bodies, operands_of
from usdcore.rewrite.types import child_of

if TYPE_CHECKING:
    from usdcore.rewrite.types import Edit, Span


def change(tree: ast.FunctionDef, edits: frozenset[Edit]) -> set[Edit]:
    """Apply edits to a tree, in place; returns those whose place was not met."""
    changer = _Changer(tree, edits)
    changer.visit(tree)
    for edit in sorted(edits - changer.left):
        if edit.moved:
            _move(tree, edit, changer.functions.get(edit))
    return changer.left


def arguments_of(call: ast.Call) -> list[ast.expr]:
    """The arguments of a call, those in a tuple one by one; none where they can't be told apart."""
    nodes: list[ast.expr] = []
    for argument in call.args:
        nodes += argument.elts if isinstance(argument, ast.Tuple | ast.List) else [argument]
    return [] if call.keywords or any(isinstance(node, ast.Starred) for node in nodes) else nodes


def is_call_at(node: ast.Call, place: Span) -> bool:
    """Where a chain of calls goes over several lines, Python gives the last one's start as that of its name."""
    return (node.end_lineno, node.end_col_offset) == (place.end_line, place.end_column)


class _Changer(ast.NodeTransformer):
    """Changes expressions. `left` are the edits not met, `functions` the definitions that branches with moved
    statements become.
    """

    def __init__(self, tree: ast.FunctionDef, edits: frozenset[Edit]) -> None:
        self.edits = edits
        self.left = set(edits)
        self.drops = any(edit.kind == "drop" for edit in edits)
        self.own = own_name(tree)
        self.functions: dict[Edit, ast.FunctionDef] = {}

    def visit_Call(self, node: ast.Call) -> ast.AST:
        here = [e for e in self.edits if e.kind in ("size", "pass") and is_call_at(node, e.span)]
        self.generic_visit(node)
        self.left.difference_update(here)
        for found in (e for e in here if e.kind == "size"):
            old = arguments_of(node)[found.number]
            for nodes in (node.args, *(a.elts for a in node.args if isinstance(a, ast.Tuple | ast.List))):
                nodes[:] = [ast.copy_location(ast.Constant(found.value), n) if n is old else n for n in nodes]
        passes = [e for e in here if e.kind == "pass"]
        return self._passed(passes[0], node) if passes else node

    def visit_BinOp(self, node: ast.BinOp) -> ast.AST:
        found = self._at(node)
        self.generic_visit(node)
        return node if found is None else self._changed(found, node)

    def visit_AugAssign(self, node: ast.AugAssign) -> ast.AST:
        found = self._at(node)
        self.generic_visit(node)
        if found is not None:
            return ast.copy_location(ast.Assign([node.target], self._changed(found, node)), node)
        if self.drops and isinstance(node.target, ast.Name):
            # Without the sum before it, what is added to in place may be the caller's.
            read = ast.copy_location(ast.Name(node.target.id, ast.Load()), node.target)
            value = ast.copy_location(ast.BinOp(read, node.op, node.value), node)
            return ast.copy_location(ast.Assign([node.target], value), node)
        return node

    def _at(self, node: ast.BinOp | ast.AugAssign) -> Edit | None:
        found = [e for e in self.edits if e.kind in ("drop", "gate") and e.span == span(node)]
        self.left.difference_update(found)
        return min(found, key=lambda e: e.kind, default=None)  # "drop" comes before "gate"

    def _passed(self, found: Edit, node: ast.Call) -> ast.Call:
        child = ast.Attribute(ast.Name(self.own, ast.Load()), child_of(found), ast.Load())
        call = ast.Call(child, [node], [])
        for made in (call, child, child.value):
            ast.copy_location(made, node)
        return call

    def _changed(self, found: Edit, node: ast.BinOp | ast.AugAssign) -> ast.expr:
        operands = operands_of(node)
        assert operands is not None
        skip, branch = operands[found.skip], operands[1 - found.skip]
        if found.kind == "drop":
            return skip
        given = ast.arguments(posonlyargs=[], args=[ast.arg(found.stream)], kwonlyargs=[], kw_defaults=[], defaults=[])
        function: ast.expr = ast.Lambda(given, branch)
        if found.moved:
            name = f"_usdcore_branch_{found.number}"
            made = ast.parse(f"def {name}({found.stream}): pass").body[0]  # with the fields of this Python's version
            assert isinstance(made, ast.FunctionDef)
            made.body = [ast.copy_location(ast.Return(branch), branch)]
            self.functions[found] = made
            function = ast.Name(name, ast.Load())
        passed = [ast.Name(self.own, ast.Load()), ast.Constant(found.number), skip, ast.Name(found.stream, ast.Load())]
        options = [ast.Name(option, ast.Load()) for option in found.options]
        call = ast.Call(ast.Name(HELPER, ast.Load()), [*passed, function, *options], [])
        for part in (call, call.func, passed[0], passed[1], passed[3], function, *options):
            ast.copy_location(part, node)
        return call


def _move(tree: ast.FunctionDef, edit: Edit, function: ast.FunctionDef | None) -> None:
    """Take the statements that belong to a branch out of the method; into its function, where it has one."""
    for body in bodies(tree):
        moved = [statement for statement in body if span(statement) in edit.moved]
        if moved:
            where = next(i for i, statement in enumerate(body) if statement is moved[-1])
            rest = [s for s in body[where + 1 :] if not any(s is m for m in moved)]
            before = [s for s in body[:where] if not any(s is m for m in moved)]
            if function is not None:
                function.body[:0] = moved
                before.append(ast.copy_location(function, moved[0]))
            body[:] = before + rest
            return
