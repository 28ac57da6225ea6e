"""A recipe before it is validated: values that remember where they were written, and how they merge."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from usdcore.errors import brief

Path = tuple[str | int, ...]
"""Keys and list indices from the root."""

Scalar = str | int | float | bool | None


_LONGEST_INDEX = 9
_LONGEST_PLACE = 300
"""Characters of a file's name or of an override that a message repeats."""


@dataclass(frozen=True)
class Origin:
    """Where a value was written: a file's line and column (from 1), or an override (then both are 0)."""

    file: str
    line: int = 0
    column: int = 0

    def __str__(self) -> str:
        file = brief(self.file, _LONGEST_PLACE)
        return f"{file}:{self.line}:{self.column}" if self.line else file


@dataclass(frozen=True)
class Node:
    """A value and its origin: for a value in a mapping, its key's. Contents are shared, so they are never changed."""

    value: Scalar | dict[str, Node] | list[Node]
    origin: Origin


def plain(node: Node) -> Any:
    """The value without origins: dictionaries, lists and scalars."""
    if isinstance(node.value, dict):
        return {key: plain(child) for key, child in node.value.items()}
    if isinstance(node.value, list):
        return [plain(child) for child in node.value]
    return node.value


def child(node: Node, part: str | int) -> Node | None:
    """The value under a key or at a list index; None where there is none."""
    if isinstance(node.value, dict):
        return node.value.get(part) if isinstance(part, str) else None
    if isinstance(node.value, list) and isinstance(part, int) and 0 <= part < len(node.value):
        return node.value[part]
    return None


def find(node: Node, path: Path) -> Node | None:
    """The value at a path; None where there is none."""
    found: Node | None = node
    for part in path:
        if found is None:
            return None
        found = child(found, part)
    return found


def closest(node: Node, path: Path) -> Node:
    """The value at a path, or at the longest beginning of it that exists."""
    for part in path:
        deeper = child(node, part)
        if deeper is None:
            break
        node = deeper
    return node


def item_name(item: Node) -> str | None:
    """What an item of a list is called; a bare name stands for a mapping with `use`."""
    if isinstance(item.value, str):
        return item.value
    if isinstance(item.value, dict):
        for key in ("name", "use"):
            node = item.value.get(key)
            if node is not None and isinstance(node.value, str):
                return node.value
    return None


def item_index(items: list[Node], part: str | int) -> int | None:
    """Which item a part of a path means: the one of that name, or of that number; None where there is none."""
    names = [item_name(item) for item in items]
    if str(part) in names:
        return names.index(str(part))
    number = int(part) if isinstance(part, int) or (part.isdecimal() and len(part) <= _LONGEST_INDEX) else len(items)
    return number if number < len(items) else None


def item_mapping(item: Node) -> Node:
    """An item of a list whose keys are set: a bare name as the mapping that it stands for."""
    return Node({"use": item}, item.origin) if isinstance(item.value, str) else item


def merge(base: Node, overlay: Node) -> Node:
    """`overlay` over `base` (RFC 7386): mappings merge key by key, anything else replaces, null deletes its key."""
    if not isinstance(overlay.value, dict):
        return overlay
    merged = dict(base.value) if isinstance(base.value, dict) else {}
    for key, node in overlay.value.items():
        if node.value is None:
            merged.pop(key, None)
        else:
            merged[key] = merge(merged.get(key, _NOTHING), node)
    return Node(merged, overlay.origin)


_NOTHING = Node(None, Origin(""))
