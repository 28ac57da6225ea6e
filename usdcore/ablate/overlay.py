"""Overrides on a recipe's tree by path. Items of a list go by the names that they bear, so a path holds at every scale.

``phases.search.strategies.usdc-dynamic.split`` is the split of the strategy of that name in the phase of that name,
wherever both stand in their lists.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NoReturn

from usdcore.errors import nearest
from usdcore.recipe.document import MAX_DEPTH
from usdcore.recipe.problems import Problem, show_path
from usdcore.recipe.tree import Node, item_index, item_mapping, item_name, merge

if TYPE_CHECKING:
    from usdcore.recipe.tree import Origin, Path


class OverlayError(Exception):
    """A path that does not fit the recipe."""

    def __init__(self, problem: Problem) -> None:
        super().__init__(problem.text)
        self.problem = problem


def lay(root: Node, values: Node | None, problems: list[Problem]) -> Node:
    """`root` with a mapping of overrides on top; what does not fit it is added to `problems`.

    Keys are paths with dots. A mapping merges with the mapping or the named list that is there, anything else replaces;
    null removes its key.
    """
    if values is None or not isinstance(values.value, dict):
        return root
    for key, node in values.value.items():
        try:
            root = _put(root, _path(key, node.origin), node, ())
        except OverlayError as error:
            problems.append(error.problem)
    return root


def cut(root: Node, paths: Node | None, problems: list[Problem]) -> Node:
    """`root` without what a list of paths names; what is not there is added to `problems`."""
    if paths is None or not isinstance(paths.value, list):
        return root
    for node in paths.value:
        if isinstance(node.value, str):
            try:
                root = _without(root, _path(node.value, node.origin), node.origin, ())
            except OverlayError as error:
                problems.append(error.problem)
    return root


def _path(text: str, origin: Origin) -> tuple[str, ...]:
    parts = tuple(text.split("."))
    if "" in parts or len(parts) > MAX_DEPTH:
        _stop(origin, (text,), "not a path; write the keys from the top, with dots between them")
    return parts


def _put(node: Node, path: tuple[str, ...], value: Node, done: Path) -> Node:
    if not path:
        if isinstance(value.value, dict) and isinstance(node.value, list):
            for key, inner in value.value.items():
                node = _put(node, (key,), inner, done)
            return node
        return merge(node, value)
    key, rest = path[0], path[1:]
    if isinstance(node.value, list):
        index = _index(node, key, value.origin, done)
        items = list(node.value)
        items[index] = _put(item_mapping(items[index]), rest, value, (*done, key))
        return Node(items, node.origin)
    if not isinstance(node.value, dict):
        _stop(value.origin, (*done, key), f"{show_path(done)} is a single value in the base, not a mapping")
    entries = dict(node.value)
    if not rest and value.value is None:
        entries.pop(key, None)
    else:
        entries[key] = _put(entries.get(key, Node({}, value.origin)), rest, value, (*done, key))
    return Node(entries, node.origin)


def _without(node: Node, path: tuple[str, ...], origin: Origin, done: Path) -> Node:
    key, rest = path[0], path[1:]
    if isinstance(node.value, list):
        index = _index(node, key, origin, done)
        items = list(node.value)
        kept = [_without(item_mapping(items[index]), rest, origin, (*done, key))] if rest else []
        items[index : index + 1] = kept
        return Node(items, node.origin)
    if not isinstance(node.value, dict) or key not in node.value:
        known = nearest(key, node.value) if isinstance(node.value, dict) and node.value else "nothing is there"
        _stop(origin, (*done, key), f"the base has nothing here to remove; {known}")
    entries = dict(node.value)
    inner = entries.pop(key)
    if rest:
        entries[key] = _without(inner, rest, origin, (*done, key))
    return Node(entries, node.origin)


def _index(node: Node, key: str, origin: Origin, done: Path) -> int:
    """Which item of a list a part of a path means: the one of that name, or of that number."""
    assert isinstance(node.value, list)
    index = item_index(node.value, key)
    if index is not None:
        return index
    known = [name for name in map(item_name, node.value) if name is not None]
    hint = nearest(key, known) if known else f"its {len(node.value)} items have no names; give a number"
    _stop(origin, (*done, key), f"{show_path(done)} has no {key!r} in the base; {hint}")


def _stop(origin: Origin, path: Path, text: str) -> NoReturn:
    raise OverlayError(Problem(origin, path, text))
