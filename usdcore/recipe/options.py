"""The options of a config class, described for people."""

from __future__ import annotations

from types import NoneType, UnionType
from typing import TYPE_CHECKING, Any, Literal, Union, get_args, get_origin

from pydantic_core import to_jsonable_python

from usdcore.hooks.reference import Reference, is_mutable

if TYPE_CHECKING:
    from pydantic import BaseModel
    from pydantic.fields import FieldInfo


def describe_options(config: type[BaseModel]) -> list[dict[str, Any]]:
    """For each option: `name`, `type`, `required`, `default` (JSON-like), `mutable`, `source` and `description`.

    `source` is the class that declares it, as ``"package.module:Class"``.
    """
    return [
        {
            "name": name,
            "type": _type(field),
            "required": field.is_required(),
            "default": None if field.is_required() else _default(field),
            "mutable": is_mutable(field),
            "source": _source(config, name),
            "description": " ".join((field.description or "").split()),
        }
        for name, field in config.model_fields.items()
    ]


def _type(field: FieldInfo) -> str:
    references = [item for item in field.metadata if isinstance(item, Reference)]
    words = type_words(references[0] if references else field.annotation)
    bounds = [
        f"{sign} {getattr(item, key)}"
        for item in field.metadata
        for key, sign in (("gt", ">"), ("ge", ">="), ("lt", "<"), ("le", "<="))
        if getattr(item, key, None) is not None
    ]
    return ", ".join([words, *bounds])


def type_words(annotation: Any) -> str:
    """A type as a recipe's writer thinks of it: ``list of integer``, ``a split``."""
    if isinstance(annotation, Reference):
        return f"a {annotation.kind.replace('-', ' ')}"
    for item in getattr(annotation, "__metadata__", ()):
        if isinstance(item, Reference):
            return type_words(item)
    origin, arguments = get_origin(annotation), get_args(annotation)
    if hasattr(annotation, "__metadata__"):
        return type_words(arguments[0])
    if origin is Literal:
        return " | ".join(str(choice) for choice in arguments)
    if origin in (Union, UnionType):
        return " | ".join(type_words(argument) for argument in arguments)
    if origin in (list, set, frozenset) or (origin is tuple and arguments[-1] is Ellipsis):
        return f"list of {type_words(arguments[0])}"
    if origin is tuple:
        return f"list of {len(arguments)}: {', '.join(type_words(argument) for argument in arguments)}"
    if origin is dict:
        return f"mapping to {type_words(arguments[1])}"
    return _WORDS.get(annotation, getattr(annotation, "__name__", str(annotation)))


_WORDS: dict[Any, str] = {int: "integer", float: "number", bool: "true | false", str: "string", NoneType: "null"}


def _default(field: FieldInfo) -> Any:
    """As it is written in a recipe."""
    return to_jsonable_python(field.get_default(call_default_factory=True))


def _source(config: type[BaseModel], name: str) -> str:
    """The class that last declared the option; for the tag, and what usdcore generates, the class it was made for."""
    for declaring in config.__mro__[1:]:
        if name in vars(declaring).get("__annotations__", {}):
            return f"{declaring.__module__}:{declaring.__name__}"
    return f"{config.__module__}:{config.__name__}"
