"""One YAML file to a tree with positions. Knows no tags, bounds what a file can cost, reports all that it can."""

from __future__ import annotations

import re
from dataclasses import dataclass
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

from usdcore.errors import brief
from usdcore.recipe.problems import Problem, RecipeError
from usdcore.recipe.scalars import read_scalar
from usdcore.recipe.tree import Node, Origin

if TYPE_CHECKING:
    from collections.abc import Iterator

    from ruamel.yaml.events import Event

    from usdcore.recipe.tree import Path, Scalar

MAX_BYTES = 2**17
MAX_DEPTH = 32
MAX_VALUES = 4_000
"""Keys, lists and scalars, with every alias counted as what it stands for."""

_BREAK = re.compile(r"\r\n|[\r\n\x85\u2028\u2029]")
_NO_CHARACTER = re.compile(r"[^\t\n\r\x20-\x7e\x85\xa0-\ud7ff\ue000-\ufefe\uff00-\ufffd\U00010000-\U0010ffff]")
"""What YAML's text may not hold: control codes, halves of surrogate pairs, a byte order mark inside."""


@dataclass
class Allowance:
    """What is left for the files and overrides of one recipe together: neither may take long nor fill the memory."""

    size: int = MAX_BYTES
    values: int = MAX_VALUES


def parse(text: str, file: str, problems: list[Problem], allowance: Allowance | None = None) -> Node:
    """The only document in `text`.

    Args:
        text: YAML.
        file: its name in positions.
        problems: mistakes that leave a tree to go on with (duplicate keys, tags, ...) are added here.
        allowance: what this text may take and lessens; None: all that a recipe may.

    Raises:
        RecipeError: where nothing is left to go on with (no YAML, too large, several documents).
    """
    if bad := _NO_CHARACTER.search(text):
        reason = f"not YAML: the character {_code(bad[0])} can't stand in text; remove it, or write it as an escape"
        raise RecipeError([*problems, Problem(_place(text, bad.start(), file), (), reason)])
    try:
        return _Builder(file, problems, allowance or Allowance()).document(YAML(typ="safe", pure=True).parse(text))
    except MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        origin = Origin(file, mark.line + 1, mark.column + 1) if mark is not None else Origin(file, 1, 1)
        raise RecipeError([*problems, Problem(origin, (), f"not YAML: {_reason(error)}")]) from None
    except YAMLError as error:
        reason = f"not YAML: {brief(' '.join(str(error).split()), 200)}; save it as plain UTF-8 text"
        raise RecipeError([*problems, Problem(Origin(file, 1, 1), (), reason)]) from None


def _place(text: str, index: int, file: str) -> Origin:
    breaks = [found.end() for found in _BREAK.finditer(text, 0, index)]
    return Origin(file, len(breaks) + 1, index - (breaks[-1] if breaks else 0) + 1)


def _code(character: str) -> str:
    return f"U+{ord(character):04X}"


def _reason(error: MarkedYAMLError) -> str:
    """What the parser says, in this module's words where a tab is to blame."""
    problem = " ".join(str(error.problem).split())
    if "'\\t'" in problem:
        return "a tab where only spaces may stand; indent with spaces"
    if "expected ':'" in problem:
        return "a line above is neither a key nor its value; write a space after each key's colon"
    begun = f" (it began in line {error.context_mark.line + 1})" if _is_elsewhere(error) else ""
    return f"{brief(problem, 200)}{begun}; mend the line, or one just above it"


def _is_elsewhere(error: MarkedYAMLError) -> bool:
    """Whether what is not finished began in another line."""
    began, found = error.context_mark, error.problem_mark
    return began is not None and found is not None and began.line != found.line


class _Builder:
    """Builds one document from the parser's events."""

    def __init__(self, file: str, problems: list[Problem], allowance: Allowance) -> None:
        self.file = file
        self.problems = problems
        self.allowance = allowance
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
            self._note(event, path, f"the tag {brief(str(tag))} is not allowed; write the plain value")
        before, anchor = self.allowance.values, getattr(event, "anchor", None)
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
            self.anchors[anchor] = (node, before - self.allowance.values + 1)
        return node

    def _scalar(self, event: Event, path: Path) -> Scalar:
        text = str(getattr(event, "value", ""))
        if any("\ud800" <= character <= "\udfff" for character in text):  # written as an escape
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
            shown = f" {brief(event.value)!r}" if isinstance(event, ScalarEvent) else ""
            self._note(event, path, f"the key{shown} is not a string; put it in quotes")
        return None

    def _alias(self, event: AliasEvent, path: Path) -> Node:
        name = brief(str(event.anchor))
        if event.anchor not in self.anchors:
            self._stop(event, path, f"the alias *{name} has no anchor above it; define &{name} first")
        anchored = self.anchors[event.anchor]
        if anchored is None:
            self._stop(event, path, f"the alias *{name} stands inside its own anchor; write the value out")
        node, size = anchored
        self._count(event, path, size - 1)
        return node

    def _count(self, event: Event, path: Path, values: int) -> None:
        self.allowance.values -= values
        if self.allowance.values < 0:
            self._stop(event, path, f"more than {MAX_VALUES} values, with aliases written out; a recipe is far smaller")

    def _origin(self, event: Event) -> Origin:
        return Origin(self.file, event.start_mark.line + 1, event.start_mark.column + 1)

    def _note(self, event: Event, path: Path, text: str) -> None:
        self.problems.append(Problem(self._origin(event), path, text))

    def _stop(self, event: Event, path: Path, text: str) -> NoReturn:
        self._note(event, path, text)
        raise RecipeError(self.problems)
