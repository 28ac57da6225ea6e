"""Where a validation error stands: pydantic's location, walked along the types and the written values at once."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import UnionType
from typing import TYPE_CHECKING, Any, Union, get_args, get_origin

from pydantic import BaseModel

from usdcore.hooks.loader import registry
from usdcore.hooks.reference import Reference
from usdcore.recipe.tree import Node, child

if TYPE_CHECKING:
    from collections.abc import Iterator

    from usdcore.recipe.tree import Path


@dataclass(frozen=True)
class Place:
    """A location in a recipe.

    `path` has no marks of unions in it, `whole` says that there were none either; `owner` is the class of the options
    that the last key belongs to (or would belong to), None where it is no such key; `inner` the class of what should
    stand there, None where it is none or not one.
    """

    path: Path
    whole: bool
    owner: type[BaseModel] | None
    inner: type[BaseModel] | None = None


def locate(loc: tuple[int | str, ...], root: Node, model: type[BaseModel], *, names_key: bool) -> Place:
    """The place that `loc` means in `root`, which was validated as `model`.

    Args:
        loc: pydantic's location. A union adds a part that is neither key nor index.
        root: the written values.
        model: the class of the root.
        names_key: the last part is a key for sure: one that is missing, or that no class knows.
    """
    path: list[str | int] = []
    whole, owner = True, None
    node: Node | None = root
    types: list[Any] = [model]
    for i, part in enumerate(loc):
        models = [t for annotation in types for t in _models(annotation, node)]
        known = [m for m in models if isinstance(part, str) and part in m.model_fields]
        last = names_key and i == len(loc) - 1
        items = [t for annotation in types for t in _items(annotation, part)]
        if known:
            types = [_annotation(m, part) for m in known]
        elif items and (isinstance(part, int) or (node is not None and child(node, part) is not None)):
            types = items
        elif last or (node is not None and child(node, part) is not None):
            types = []
        else:
            whole = False
            continue
        owner = next(iter(known or models), None) if isinstance(part, str) else None
        node = child(node, part) if node is not None else None
        path.append(part)
    inner = [m for annotation in types for m in _models(annotation, node)]
    return Place(tuple(path), whole, owner, inner[0] if len(inner) == 1 else None)


def _annotation(model: type[BaseModel], key: int | str) -> Any:
    """A field's annotation with its metadata, where a reference may be."""
    field = model.model_fields[str(key)]
    references = [item for item in field.metadata if isinstance(item, Reference)]
    return references[0] if references else field.annotation


def _models(annotation: Any, node: Node | None) -> Iterator[type[BaseModel]]:
    """The classes whose options may stand here, given what is written here."""
    if isinstance(annotation, Reference):
        name = _name(node, annotation.tag) if node is not None else None
        if name is not None and name in registry().names(annotation.kind):
            yield registry().config(annotation.kind, name)
    elif isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    else:
        for inner in _alternatives(annotation):
            yield from _models(inner, node)


def _name(node: Node, tag: str) -> str | None:
    """The plugin that is named here; only that is looked at, because what is around it may be long."""
    named = child(node, tag) if isinstance(node.value, dict) else node
    return named.value if named is not None and isinstance(named.value, str) else None


def _items(annotation: Any, part: int | str) -> Iterator[Any]:
    """The types of what is inside a list (for an index) or a mapping with free keys (for a key)."""
    origin, arguments = get_origin(annotation), get_args(annotation)
    if isinstance(origin, type) and arguments and not isinstance(annotation, Reference):
        if issubclass(origin, Mapping):
            yield from arguments[1:] if isinstance(part, str) else ()
        elif isinstance(part, int) and issubclass(origin, list | tuple | set | frozenset):
            fixed = issubclass(origin, tuple) and arguments[-1] is not Ellipsis
            yield arguments[min(part, len(arguments) - 1)] if fixed else arguments[0]
    for inner in _alternatives(annotation):
        yield from _items(inner, part)


def _alternatives(annotation: Any) -> list[Any]:
    """What an annotated type or a union stands for."""
    references = [item for item in getattr(annotation, "__metadata__", ()) if isinstance(item, Reference)]
    if references:
        return list(references)
    origin = get_origin(annotation)
    if hasattr(annotation, "__metadata__"):
        return [get_args(annotation)[0]]
    return list(get_args(annotation)) if origin in (Union, UnionType) else []
