"""A recipe as YAML, with a comment beside each value where one is wanted."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from usdcore.recipe.scalars import write_scalar

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from usdcore.recipe.tree import Path

    Comment = Callable[[Path], str | None]

_STEP = "  "


def emit(value: dict[str, Any], comment: Comment = lambda path: None) -> str:
    """YAML of JSON-like values that parses to equal ones.

    Args:
        value: dictionaries with string keys, lists, scalars.
        comment: for the path of a scalar, of an empty collection or of a list of scalars, what to write beside it.
    """
    lines = list(_mapping(value, (), comment))
    width = min(max((len(text) for text, note in lines if note), default=0), 60)
    return "".join(f"{text:<{width}}  # {note}\n" if note else f"{text}\n" for text, note in lines)


def _mapping(value: dict[str, Any], path: Path, comment: Comment) -> Iterator[tuple[str, str | None]]:
    for key, inner in value.items():
        here = (*path, key)
        line = _inline(inner)
        if line is not None:
            yield f"{write_scalar(key)}: {line}", comment(here)
            continue
        yield f"{write_scalar(key)}:", None
        lines = _mapping(inner, here, comment) if isinstance(inner, dict) else _sequence(inner, here, comment)
        yield from ((_STEP + text, note) for text, note in lines)


def _sequence(value: list[Any], path: Path, comment: Comment) -> Iterator[tuple[str, str | None]]:
    for index, inner in enumerate(value):
        here = (*path, index)
        line = _inline(inner)
        if line is not None:
            yield f"- {line}", comment(here)
            continue
        lines = _mapping(inner, here, comment) if isinstance(inner, dict) else _sequence(inner, here, comment)
        for number, (text, note) in enumerate(lines):
            yield ("- " if number == 0 else _STEP) + text, note


def _inline(value: Any) -> str | None:
    """What fits on the key's own line: a scalar, an empty collection, a list of scalars."""
    if isinstance(value, dict):
        return None if value else "{}"
    if isinstance(value, list) and any(isinstance(item, dict | list) for item in value):
        return None
    return flow(value)


def flow(value: Any) -> str:
    """Any JSON-like value on one line of YAML."""
    if isinstance(value, dict):
        return f"{{{', '.join(f'{write_scalar(key)}: {flow(inner)}' for key, inner in value.items())}}}"
    return f"[{', '.join(flow(item) for item in value)}]" if isinstance(value, list) else write_scalar(value)


def leaves(value: Any, path: Path = ()) -> Iterator[Path]:
    """The paths that `emit` asks a comment for, in order."""
    if _inline(value) is not None and path:
        yield path
        return
    for key, inner in value.items() if isinstance(value, dict) else enumerate(value):
        yield from leaves(inner, (*path, key))
