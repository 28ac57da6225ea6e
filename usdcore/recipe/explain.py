"""Validation errors in words: the offending value, and what to do about it."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

from usdcore.errors import nearest
from usdcore.recipe.base import NAME_PATTERN
from usdcore.recipe.hints import number_meant, percent_meant, truth_meant, unknown_key
from usdcore.recipe.places import Place, locate
from usdcore.recipe.problems import Problem
from usdcore.recipe.scalars import write_scalar
from usdcore.recipe.tree import Node, closest, find, plain

if TYPE_CHECKING:
    from pydantic import BaseModel, ValidationError
    from pydantic_core import ErrorDetails

    from usdcore.recipe.tree import Path

_LONGEST = 60
"""Characters of an offending value that a message repeats."""

_WANTED = {
    "int": ("an integer", "write a whole number"),
    "float": ("a number", "write a number such as 1.0e-4"),
    "finite_number": ("a finite number", "write a number such as 1.0e-4"),
    "bool": ("true or false", "write true or false"),
    "string": ("a string", "put it in quotes if it is meant as text"),
    "list": ("a list", "write a list such as [a, b]"),
    "tuple": ("a list", "write a list such as [a, b]"),
    "set": ("a list", "write a list such as [a, b]"),
    "dict": ("a mapping", "write keys with values"),
    "model": ("a mapping", "write keys with values"),
    "path": ("a path", "put it in quotes if it is meant as a file name"),
}
"""By the beginning of pydantic's error type: what was wanted, what to do."""

_BOUNDS = {
    "greater_than": ("too small", "greater than", "gt"),
    "greater_than_equal": ("too small", "at least", "ge"),
    "less_than": ("too large", "less than", "lt"),
    "less_than_equal": ("too large", "at most", "le"),
}


_COMPLETE = ("missing_tag", "unknown_plugin", "strategy_twice", "phase_twice", "strategy_changed")
"""Errors of usdcore's own, whose texts say everything."""


def explain(error: ValidationError, root: Node, model: type[BaseModel]) -> list[Problem]:
    """A problem for each mistake, in the order of pydantic's checks; alternatives of a union become one."""
    found: dict[Path, list[tuple[Place, str]]] = {}
    for detail in error.errors(include_url=False):
        names_key = detail["type"] in ("missing", "missing_tag", "extra_forbidden")
        place = locate(detail["loc"], root, model, names_key=names_key)
        node = find(root, place.path)
        if _is_echo(detail, node):
            continue
        text = _words(detail, place, node)
        found.setdefault(place.path, []).append((place, text))
    problems = []
    inside = {path[:length] for path in found for length in range(len(path))}
    for path, entries in found.items():
        # One alternative of a union got further than this one, so its own complaint is the useful one.
        if path in inside and all(not place.whole for place, _ in entries):
            continue
        text = "; or: ".join(dict.fromkeys(text for _, text in entries))
        problems.append(Problem(closest(root, path).origin, path, text))
    return problems


def _is_echo(detail: ErrorDetails, node: Node | None) -> bool:
    """pydantic counts a list's valid items, so that a list of wrong ones is called too short as well."""
    least = detail.get("ctx", {}).get("min_length", 0)
    return (
        detail["type"] == "too_short" and node is not None and isinstance(node.value, list) and len(node.value) >= least
    )


def _words(detail: ErrorDetails, place: Place, node: Node | None) -> str:
    kind, context = detail["type"], detail.get("ctx", {})
    shown = show(plain(node) if node is not None else detail["input"])
    if kind == "missing":
        return f"the key is missing; add it{_about(place)}"
    if kind == "extra_forbidden":
        return unknown_key(str(place.path[-1]), place.owner)
    if kind in _BOUNDS:
        problem, relation, key = _BOUNDS[kind]
        remark = percent_meant(detail["input"], context[key]) if kind.startswith("less") else ""
        return f"{shown} is {problem}; use a number {relation} {_bound(context[key])}{remark}"
    if kind in ("literal_error", "enum"):
        choices = re.findall(r"'([^']*)'", str(context.get("expected", "")))
        return f"{shown} is not a choice here; {_choose(detail['input'], choices)}"
    if kind in ("too_short", "too_long"):
        bound = f"at least {context['min_length']}" if kind == "too_short" else f"at most {context['max_length']}"
        return f"{shown} has {context['actual_length']} items; give {bound}"
    if kind == "string_too_short":
        return f"{shown} is too short; give at least {context['min_length']} characters"
    if kind == "string_too_long":
        return f"{shown} is too long; give at most {context['max_length']} characters"
    if kind == "string_pattern_mismatch":
        return f"{shown} {_form(context['pattern'])}"
    if kind in ("value_error", "assertion_error"):
        return re.sub(r"^(Value error|Assertion failed), ", "", detail["msg"])
    return _by_type(detail, shown, place)


def _by_type(detail: ErrorDetails, shown: str, place: Place) -> str:
    kind = detail["type"]
    if kind == "reference_type":
        return f"{shown} is {detail['msg']}"
    for start, (wanted, advice) in _WANTED.items():
        if kind.startswith(start) and kind.endswith(("_type", "_parsing", "_from_float", "number")):
            return f"{shown} is not {wanted}; {_meant(detail['input'], start, place) or advice}"
    if kind in _COMPLETE:
        return detail["msg"]
    message = detail["msg"][:1].lower() + detail["msg"][1:]
    return f"{shown} is not valid here: {message}"


def _meant(value: Any, start: str, place: Place) -> str | None:
    """Advice for this very value, where it can be guessed."""
    if start in ("int", "float"):
        return number_meant(value, start)
    if start == "bool":
        return truth_meant(value)
    if start == "model" and place.inner is not None:
        wanted = [name for name, field in place.inner.model_fields.items() if field.is_required()]
        return f"write a mapping with {' and '.join(wanted)}" if wanted else None
    return None


def _choose(value: Any, choices: list[str]) -> str:
    return nearest(value, choices) if isinstance(value, str) else f"valid: {', '.join(choices)}"


def _bound(value: float) -> str:
    """Whole numbers without the .0 that pydantic's context gives them."""
    return str(int(value)) if value == int(value) else repr(value)


def _form(pattern: str) -> str:
    if pattern == NAME_PATTERN:
        return "can't name a file; use letters, digits, '.', '_' and '-', with a letter or digit first"
    return f"does not match {pattern}; use only what it allows"


def _about(place: Place) -> str:
    """What a missing key means, in brackets."""
    field = place.owner.model_fields.get(str(place.path[-1])) if place.owner is not None else None
    if field is None or not field.description:
        return ""
    first = " ".join(field.description.split()).rstrip(".")
    return f" ({first[:1].lower()}{first[1:]})"


def show(value: Any) -> str:
    """A value as a message repeats it."""
    if isinstance(value, dict):
        return "a mapping"
    if isinstance(value, list | tuple):
        return f"a list of {len(value)}" if len(str(value)) > _LONGEST else str(list(value))
    text = repr(value) if isinstance(value, str) else write_scalar(value)
    return text if len(text) <= _LONGEST else f"{text[:_LONGEST]}..."
