"""The source of a host's methods: read from its file, checked to be what runs, and compiled again."""

from __future__ import annotations

import ast
import copy
import inspect
import linecache
import tokenize
from functools import cache, lru_cache
from types import CodeType, FunctionType
from typing import TYPE_CHECKING, Any

from usdcore.rewrite.types import Span

if TYPE_CHECKING:
    from collections.abc import Callable

HELPER = "_usdcore_helper"
MARK = "_usdcore_edits"  # an edited class has the host's class and the edits under this name
_FUTURE = 0x1FF0000  # the bits of a code object that its `from __future__ import ...` set


class UnreadableError(Exception):
    """Why a method can't be compiled again."""


@cache
def method_of(kind: type, code: CodeType) -> str | None:
    """The name of the method of a class in which a function's code is compiled; None if there is none."""
    for owner in kind.__mro__:
        for name, value in vars(owner).items():
            if isinstance(value, FunctionType) and _holds(_written(value).__code__, code):
                return name if getattr(kind, name) is value else None
    return None


def _written(function: FunctionType) -> FunctionType:
    """The method that was written, where a parent's `__init_subclass__` has wrapped it: it wraps a derived one too."""
    while "__init_subclass__.<locals>" in function.__code__.co_qualname:
        inner = getattr(function, "__wrapped__", None)
        if not isinstance(inner, FunctionType):
            break
        function = inner
    return function


def host_method(kind: type, function: str) -> FunctionType:
    """A method as the host wrote it."""
    for owner in kind.__mro__:
        if MARK not in vars(owner) and function in vars(owner):
            found = vars(owner)[function]
            if isinstance(found, FunctionType):
                return _written(found)
            break
    msg = f"{function} is not a plain method"
    raise UnreadableError(msg)


def source_tree(function: FunctionType) -> ast.FunctionDef:
    """The definition of a method, checked to be what runs: compiled again it gives the same instructions.

    It is one and the same each time: change a copy only.
    """
    found = _tree_or_problem(function)
    if isinstance(found, str):
        raise UnreadableError(found)
    return found


@lru_cache(maxsize=512)
def _tree_or_problem(function: FunctionType) -> ast.FunctionDef | str:
    code = function.__code__
    tree = _definition(code)
    made = None if tree is None else compiled(copied(tree), function, None)
    if tree is None or made is None:
        return f"the source of {function.__qualname__} can't be read, or it is decorated"
    if made.__code__.co_code != code.co_code or made.__code__.co_names != code.co_names:
        return f"the source of {function.__qualname__} on disk is not what runs, or it uses variables around it"
    return tree


def _definition(code: CodeType) -> ast.FunctionDef | None:
    """The definition on the lines of a code object, with the positions that it has in the file."""
    lines = linecache.getlines(code.co_filename)[code.co_firstlineno - 1 :]
    try:
        block = inspect.getblock(lines)
        tree = ast.parse("if 1:\n" + "".join(block) if block[0][:1].isspace() else "".join(block))
    except (IndexError, SyntaxError, tokenize.TokenError):
        return None
    ast.increment_lineno(tree, code.co_firstlineno - (2 if block[0][:1].isspace() else 1))
    found = next((n for n in ast.walk(tree) if isinstance(n, ast.FunctionDef)), None)
    return found if found is not None and found.name == code.co_name and not found.decorator_list else None


@lru_cache(maxsize=64)
def _imports(filename: str) -> list[ast.stmt]:
    """The imports at the top level of a file, but for those that tell the compiler what to do."""
    found: list[str] = []
    is_open = False
    for line in linecache.getlines(filename):
        if is_open:
            found[-1] += line
        elif line.startswith(("import ", "from ")) and not line.startswith("from __future__"):
            found.append(line)
        else:
            continue
        is_open = found[-1].count("(") > found[-1].count(")") or line.rstrip().endswith("\\")
    try:
        return ast.parse("".join(found)).body
    except SyntaxError:
        return []


def copied(tree: ast.FunctionDef) -> ast.FunctionDef:
    """A copy whose defaults and annotations, which the host's function has already, are not evaluated again."""
    bare = copy.deepcopy(tree)
    arguments = bare.args
    for argument in (*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs, arguments.vararg, arguments.kwarg):
        if argument is not None:
            argument.annotation = None
    arguments.defaults = [ast.copy_location(ast.Constant(None), d) for d in arguments.defaults]
    arguments.kw_defaults = [d and ast.copy_location(ast.Constant(None), d) for d in arguments.kw_defaults]
    bare.returns = None
    return bare


def compiled(tree: ast.FunctionDef, host: FunctionType, helper: Callable[..., Any] | None) -> FunctionType:
    """Compile a function definition where the host's stood: its globals, defaults, and class for `super()`."""
    maker = ast.parse(f"if 0:\n    pass\ndef make(__class__, {HELPER}):\n    pass\n    return {tree.name}")
    imports, outer = maker.body
    assert isinstance(imports, ast.If)
    assert isinstance(outer, ast.FunctionDef)
    imports.body += _imports(host.__code__.co_filename)  # never run: the compiler calls what is imported differently
    outer.body[0] = tree
    ast.fix_missing_locations(maker)
    space: dict[str, Any] = {}
    flags = host.__code__.co_flags & _FUTURE
    exec(compile(maker, host.__code__.co_filename, "exec", flags, dont_inherit=True), host.__globals__, space)
    made: FunctionType = space["make"](_class_of(host), helper)
    made.__defaults__, made.__kwdefaults__ = host.__defaults__, host.__kwdefaults__
    made.__qualname__, made.__doc__, made.__module__ = host.__qualname__, host.__doc__, host.__module__
    made.__annotations__ = dict(inspect.get_annotations(host))
    return made


def span(node: ast.expr | ast.stmt) -> Span:
    """Where a node stands."""
    assert node.end_lineno is not None
    assert node.end_col_offset is not None
    return Span(node.lineno, node.end_lineno, node.col_offset, node.end_col_offset)


def own_name(tree: ast.FunctionDef) -> str:
    """What a method calls its module: `self`."""
    return (*tree.args.posonlyargs, *tree.args.args)[0].arg


def _holds(code: CodeType, part: CodeType) -> bool:
    # Equal, not the same: a method that was compiled twice is known by whichever was seen first.
    return code == part or any(isinstance(c, CodeType) and _holds(c, part) for c in code.co_consts)


def _class_of(host: FunctionType) -> type | None:
    """The class that `super()` in a method means."""
    if "__class__" in host.__code__.co_freevars:
        cell = (host.__closure__ or ())[host.__code__.co_freevars.index("__class__")]
        found: type = cell.cell_contents
        return found
    return None
