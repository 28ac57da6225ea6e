"""From files and overrides to one tree: `extends` merges files, `--set` replaces single values."""

from __future__ import annotations

import os
from pathlib import Path as FilePath
from typing import TYPE_CHECKING, NoReturn

from usdcore.errors import brief, nearest
from usdcore.recipe.document import MAX_BYTES, MAX_DEPTH, Allowance, parse
from usdcore.recipe.problems import Problem, RecipeError, show_path
from usdcore.recipe.tree import Node, Origin, item_index, item_mapping, item_name, merge

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from usdcore.recipe.tree import Path

MAX_FILES = 64
_LONGEST_INDEX = 9
_LONGEST_NAME = 200


def read_tree(path: FilePath, problems: list[Problem], allowance: Allowance | None = None) -> Node:
    """A recipe file with everything it extends: earlier parents first, then later ones, then the file itself.

    Mistakes that leave something to go on with are added to `problems`; `allowance` (default: a whole one) lessens by
    what was read.

    Raises:
        RecipeError: a file that can't be read, is no YAML mapping, or extends itself.
    """
    return _Reader(problems, allowance or Allowance()).read(path, Origin(str(path)), ())


class _Reader:
    """Reads files, each relative to the one that extends it."""

    def __init__(self, problems: list[Problem], allowance: Allowance) -> None:
        self.problems = problems
        self.allowance = allowance
        self.files = 0

    def read(self, path: FilePath, asked_at: Origin, chain: tuple[str, ...]) -> Node:
        """One file, merged over its parents. `chain`: the files that are being read, from the first."""
        here = _real(path)
        if here in chain:
            loop = " -> ".join(brief(FilePath(p).name) for p in (*chain[chain.index(here) :], here))
            self._stop(asked_at, f"the recipe extends itself: {loop}; remove one of these extends")
        self.files += 1
        if self.files > MAX_FILES:
            self._stop(asked_at, f"more than {MAX_FILES} files by extends; merge some of them")
        root = parse(self._text(path, asked_at), str(path), self.problems, self.allowance)
        if not isinstance(root.value, dict):
            what = "the file is empty" if root.value is None else "not a mapping of keys"
            self._stop(root.origin, f"{what}; a recipe starts with lines such as 'name: my-run'", ())
        own = Node({key: node for key, node in root.value.items() if key != "extends"}, root.origin)
        merged: Node | None = None
        for parent in self._parents(root.value.get("extends")):
            file = FilePath(os.path.normpath(path.parent / str(parent.value)))
            tree = self.read(file, parent.origin, (*chain, here))
            merged = tree if merged is None else merge(merged, tree)
        return own if merged is None else merge(merged, own)

    def _parents(self, extends: Node | None) -> list[Node]:
        if extends is None:
            return []
        parents = extends.value if isinstance(extends.value, list) else [extends]
        for parent in parents:
            if not isinstance(parent.value, str) or not parent.value:
                self._stop(parent.origin, "not the name of a file; write 'extends: base.yaml' or a list of files")
        return parents

    def _text(self, path: FilePath, asked_at: Origin) -> str:
        if not is_there(FilePath.is_file, path):
            at, key = (asked_at, ("extends",)) if asked_at.line else (Origin(str(path)), ())
            self._stop(at, _absent(path), key)
        try:
            with path.open("rb") as file:
                content = file.read(self.allowance.size + 1)
        except OSError as error:
            self._stop(Origin(str(path)), f"can't be read ({error.strerror}); check its permissions", ())
        if len(content) > self.allowance.size:
            whole = "larger than" if self.allowance.size == MAX_BYTES else "with the files before it larger than"
            self._stop(Origin(str(path)), f"{whole} {MAX_BYTES} bytes; this is no recipe", ())
        self.allowance.size -= len(content)
        try:
            return content.decode("utf-8-sig")
        except UnicodeDecodeError as error:
            line = content.count(b"\n", 0, error.start) + 1
            self._stop(Origin(str(path), line, 1), "not UTF-8 text; save the file as UTF-8", ())

    def _stop(self, origin: Origin, text: str, path: Path = ("extends",)) -> NoReturn:
        raise RecipeError([*self.problems, Problem(origin, path, text)])


def _real(path: FilePath) -> str:
    """The same for two names of one file; never an error, however strange the name."""
    try:
        return os.path.realpath(path)
    except (OSError, ValueError):  # a null byte
        return str(path)


def is_there(question: Callable[[FilePath], bool], path: FilePath) -> bool:
    """Whether a path is a file or a folder; a name that no file can have is neither."""
    try:
        return question(path)
    except (OSError, ValueError):
        return False


def _absent(path: FilePath) -> str:
    """Why there is nothing to read."""
    name = brief(str(path), _LONGEST_NAME)
    if is_there(FilePath.is_dir, path):
        return f"{name} is a folder, not a file; name the recipe inside it"
    if is_there(FilePath.exists, path):
        return f"{name} is no ordinary file; name a recipe"
    near = sorted(p.name for p in path.parent.glob("*.yaml")) if is_there(FilePath.is_dir, path.parent) else []
    return f"there is no file {name}; {nearest(path.name, near) if near else 'check the path'}"


def apply_overrides(
    root: Node, overrides: Sequence[str], problems: list[Problem], allowance: Allowance | None = None
) -> Node:
    """`root` with each ``a.b=value`` in place of what was there; mistakes are added to `problems`.

    The value is YAML; it replaces the old one as it is (null is a value here). A list's item goes by the name that it
    bears (`phases.search`) or by its number; the length of the list appends. Missing mappings on the way are made.
    """
    allowance = allowance or Allowance()
    for override in overrides:
        origin = of_override(override)
        if len(override) > allowance.size:
            problems.append(Problem(origin, (), f"with the files longer than {MAX_BYTES} bytes; write a file instead"))
            continue
        allowance.size -= len(override)
        keys, equals, text = override.partition("=")
        path: Path = tuple(_part(part) for part in keys.strip().split("."))
        if not equals or "" in path or len(path) > MAX_DEPTH:
            problems.append(Problem(origin, (), "not of the form a.b=value; name a key, with dots, and its new value"))
            continue
        if path[0] == "extends":
            problems.append(Problem(origin, path, "extends can't be overridden; write a file that extends others"))
            continue
        if any(isinstance(part, str) and not _is_text(part) for part in path):
            problems.append(Problem(origin, (), "the key is not UTF-8 text; write it in plain letters"))
            continue
        noted: list[Problem] = []
        try:
            value = _rooted(parse(text, origin.file, noted, allowance), origin)
            root = _replace(root, path, value, ())
            problems += [Problem(origin, (*path, *note.path), note.text) for note in noted]
        except _StepError as step:
            problems.append(Problem(origin, step.path, step.text))
        except RecipeError as error:
            problems.append(Problem(origin, path, error.problems[0].text))
            if allowance.values < 0:
                break
    return root


def of_override(override: str) -> Origin:
    """Where the values of an override come from."""
    return Origin(f"--set {override}")


def _part(text: str) -> str | int:
    """A key, or a list's index."""
    return int(text) if text.isdecimal() and len(text) <= _LONGEST_INDEX else text


def _is_text(text: str) -> bool:
    """Whether it can be written as UTF-8: an argument that is not holds halves of surrogate pairs."""
    return not any("\ud800" <= character <= "\udfff" for character in text)


class _StepError(Exception):
    """An override's path does not fit the recipe."""

    def __init__(self, path: Path, text: str) -> None:
        super().__init__(text)
        self.path, self.text = path, text


def _replace(node: Node, path: Path, value: Node, done: Path) -> Node:
    """A copy of `node` with `value` at `path`; `done` is the path to `node`."""
    if not path:
        return value
    part, rest = path[0], path[1:]
    if isinstance(node.value, list):
        items, index = list(node.value), _index(node.value, part, done)
        old = items[index] if index < len(items) else Node({}, value.origin)
        items[index : index + 1] = [_replace(item_mapping(old) if rest else old, rest, value, (*done, index))]
        return Node(items, node.origin)
    if not isinstance(node.value, dict):
        text = (
            f"{show_path(done)} is the value {brief(repr(node.value))}, not a mapping; set {show_path(done)} as a whole"
        )
        raise _StepError((*done, str(part)), text)
    key = str(part)
    old = node.value.get(key, Node({}, value.origin))
    if rest and old.value is None:
        old = Node({}, value.origin)
    return Node({**node.value, key: _replace(old, rest, value, (*done, key))}, node.origin)


def _index(items: list[Node], part: str | int, done: Path) -> int:
    """Which item of a list a part of a path means, or, by its length, the one that is to be appended."""
    index, last = item_index(items, part), len(items)
    if index is not None or part == last:
        return last if index is None else index
    known = [name for name in map(item_name, items) if name is not None]
    have = f"0 to {last - 1}, or {last}" if last else "0"
    text = f"{show_path(done)} is a list of {last}; use {have} to append"
    if isinstance(part, str) and known:
        text = f"{show_path(done)} has no {brief(repr(part))}; {nearest(part, known)}"
    raise _StepError((*done, str(part)), text)


def _rooted(node: Node, origin: Origin) -> Node:
    """The same value, all of it written by the override."""
    if isinstance(node.value, dict):
        return Node({key: _rooted(inner, origin) for key, inner in node.value.items()}, origin)
    if isinstance(node.value, list):
        return Node([_rooted(inner, origin) for inner in node.value], origin)
    return Node(node.value, origin)
