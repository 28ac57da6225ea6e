"""One YAML file to a tree with positions. Knows no tags, bounds what a file can cost, reports all that it can."""

from __future__ import annotations

from typing import TYPE_CHECKING, NoReturn

from ruamel.yaml import YAML
from ruamel.yaml.error import MarkedYAMLError, YAMLError
from ruamel.yaml.events import (
    AliasEvent,
    DocumentStartEvent,
    MappingEndEvent,
    MappingStartEvent,
    ScalarEvent,
    SequenceEndEvent,
    SequenceStartEvent,
)

from usdcore.recipe.problems import Problem, RecipeError
from usdcore.recipe.scalars import read_scalar
from usdcore.recipe.tree import Node, Origin

if TYPE_CHECKING:
    from collections.abc import Iterator

    from ruamel.yaml.events import Event

    from usdcore.recipe.tree import Path, Scalar

MAX_BYTES = 2**20
MAX_DEPTH = 32
MAX_VALUES = 20_000
"""Keys, lists and scalars of one file, with every alias counted as what it stands for."""


def parse(text: str, file: str, problems: list[Problem]) -> Node:
    """The only document in `text`.

    Args:
        text: YAML.
        file: its name in positions.
        problems: mistakes that leave a tree to go on with (duplicate keys, tags, ...) are added here.

    Raises:
        RecipeError: where nothing is left to go on with (no YAML, too large, several documents).
    """
    try:
        return _Builder(file, problems).document(YAML(typ="safe", pure=True).parse(text))
    except MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        origin = Origin(file, mark.line + 1, mark.column + 1) if mark is not None else Origin(file)
        reason = f"not YAML: {error.problem}; mend the line, or one just above it"
        raise RecipeError([*problems, Problem(origin, (), reason)]) from None
    except YAMLError as error:
        reason = f"not YAML: {' '.join(str(error).split())}; save it as plain UTF-8 text"
        raise RecipeError([*problems, Problem(Origin(file), (), reason)]) from None


class _Builder:
    """Builds one document from the parser's events."""

    def __init__(self, file: str, problems: list[Problem]) -> None:
        self.file = file
        self.problems = problems
        self.values = 0
        self.depth = 0
        self.anchors: dict[str, tuple[Node, int] | None] = {}

    def document(self, events: Iterator[Event]) -> Node:
        root: Node | None = None
        for event in events:
            if isinstance(event, DocumentStartEvent):
                if root is not None:
                    self._stop(event, (), "a second document starts here; a recipe is one document, remove the '---'")
                root = self._node(next(events), events, ())
        return root if root is not None else Node(None, Origin(self.file, 1, 1))

    def _node(self, event: Event, events: Iterator[Event], path: Path) -> Node:
        self._count(event, path, 1)
        if isinstance(event, AliasEvent):
            return self._alias(event, path)
        tag = getattr(event, "tag", None)
        if tag is not None:
            self._note(event, path, f"the tag {tag} is not allowed; write the plain value")
        before, anchor = self.values, getattr(event, "anchor", None)
        if anchor is not None:
            self.anchors[anchor] = None  # until it is complete
        self.depth += 1
        if self.depth > MAX_DEPTH:
            self._stop(event, (), f"nested deeper than {MAX_DEPTH} levels; a recipe is far flatter")
        if isinstance(event, MappingStartEvent):
            node = Node(self._mapping(events, path), self._origin(event))
        elif isinstance(event, SequenceStartEvent):
            node = Node(self._sequence(events, path), self._origin(event))
        else:
            node = Node(self._scalar(event, path), self._origin(event))
        self.depth -= 1
        if anchor is not None:
            self.anchors[anchor] = (node, self.values - before + 1)
        return node

    def _scalar(self, event: Event, path: Path) -> Scalar:
        text = str(getattr(event, "value", ""))
        if any("\ud800" <= character <= "\udfff" for character in text):
            self._note(event, path, "half of a surrogate pair is no character; write the character itself")
            return ""
        return read_scalar(text) if getattr(event, "style", None) is None else text

    def _sequence(self, events: Iterator[Event], path: Path) -> list[Node]:
        items: list[Node] = []
        while not isinstance(event := next(events), SequenceEndEvent):
            items.append(self._node(event, events, (*path, len(items))))
        return items

    def _mapping(self, events: Iterator[Event], path: Path) -> dict[str, Node]:
        values: dict[str, Node] = {}
        while not isinstance(event := next(events), MappingEndEvent):
            key = self._key(event, events, path)
            origin = self._origin(event)
            node = self._node(next(events), events, path if key is None else (*path, key))
            if key is None:
                continue
            if key in values:
                first = values[key].origin
                self._note(event, (*path, key), f"the key is here twice (first in line {first.line}); remove one")
            values[key] = Node(node.value, origin)
        return values

    def _key(self, event: Event, events: Iterator[Event], path: Path) -> str | None:
        """A key, or None (with the mistake noted) where it is no string."""
        node = self._node(event, events, path)
        if isinstance(event, ScalarEvent) and event.value == "<<" and event.style is None:
            self._note(event, path, "merge keys (<<) are not allowed; use extends, or write the keys out")
        elif isinstance(node.value, str):
            return node.value
        else:
            shown = f" {event.value!r}" if isinstance(event, ScalarEvent) else ""
            self._note(event, path, f"the key{shown} is not a string; put it in quotes")
        return None

    def _alias(self, event: AliasEvent, path: Path) -> Node:
        if event.anchor not in self.anchors:
            self._stop(event, path, f"the alias *{event.anchor} has no anchor above it; define &{event.anchor} first")
        anchored = self.anchors[event.anchor]
        if anchored is None:
            self._stop(event, path, f"the alias *{event.anchor} stands inside its own anchor; write the value out")
        node, size = anchored
        self._count(event, path, size - 1)
        return node

    def _count(self, event: Event, path: Path, values: int) -> None:
        self.values += values
        if self.values > MAX_VALUES:
            self._stop(event, path, f"more than {MAX_VALUES} values, with aliases written out; a recipe is far smaller")

    def _origin(self, event: Event) -> Origin:
        return Origin(self.file, event.start_mark.line + 1, event.start_mark.column + 1)

    def _note(self, event: Event, path: Path, text: str) -> None:
        self.problems.append(Problem(self._origin(event), path, text))

    def _stop(self, event: Event, path: Path, text: str) -> NoReturn:
        self._note(event, path, text)
        raise RecipeError(self.problems)
