"""A field that names another plugin: checked against what is registered when it is validated, not when imported."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, Literal, get_args

from pydantic import BaseModel, ValidationError
from pydantic_core import PydanticCustomError, core_schema, to_json

if TYPE_CHECKING:
    from collections.abc import Iterator

    from pydantic import GetCoreSchemaHandler, GetJsonSchemaHandler
    from pydantic.fields import FieldInfo
    from pydantic.json_schema import JsonSchemaValue
    from pydantic_core import ErrorDetails, InitErrorDetails

    from usdcore.hooks.facade import Registry

Kind = Literal["strategy", "gate-network", "split", "data-source", "backbone"]

KINDS: tuple[Kind, ...] = get_args(Kind)
"""Everything that can be registered."""

SCHEMA_KEY = "x-usdcore-kind"
"""Marks, in a JSON schema, the place where any plugin of that kind may stand."""


def tag_of(kind: str) -> str:
    """The key that names the plugin in a mapping of options."""
    return "source" if kind == "data-source" else "use"


@dataclass(frozen=True)
class Reference:
    """Annotation of a field that holds the options of a registered plugin of one kind.

    Takes a bare name, a mapping with the name under the tag, or a config object; gives an instance of the registered
    config class. Errors keep their exact place inside the mapping.
    """

    kind: Kind

    @property
    def tag(self) -> str:
        """The key that names the plugin."""
        return tag_of(self.kind)

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> core_schema.CoreSchema:
        return core_schema.with_info_plain_validator_function(self.validate)

    def __get_pydantic_json_schema__(
        self, schema: core_schema.CoreSchema, handler: GetJsonSchemaHandler
    ) -> JsonSchemaValue:
        return {"anyOf": [{"type": "string"}, {"type": "object"}], SCHEMA_KEY: self.kind}

    def name_in(self, value: object) -> str | None:
        """The plugin that `value` names, or None where it names none."""
        if isinstance(value, BaseModel):
            value = getattr(value, self.tag, None)
        elif isinstance(value, Mapping):
            value = value.get(self.tag)
        return value if isinstance(value, str) else None

    def validate(self, value: Any, info: core_schema.ValidationInfo) -> BaseModel:
        """The options as an instance of the registered config class.

        What comes from a file (JSON mode) is checked strictly: a quoted number is not a number.
        """
        # The registry's own types need this module, so it can only be imported when it is used.
        from usdcore.hooks.loader import registry

        config = self._config(registry(), value)
        if isinstance(value, config):
            return value
        if isinstance(value, BaseModel):  # the plugin's own class, without the tag that registering adds
            options: Any = {key: getattr(value, key) for key in value.model_fields_set}
        else:
            options = {self.tag: value} if isinstance(value, str) else value
        if info.mode == "json":
            return config.model_validate_json(to_json(options), strict=True, context=info.context)
        return config.model_validate(options, context=info.context)

    def _config(self, registry: Registry, value: object) -> type[BaseModel]:
        name, words = self.name_in(value), self.kind.replace("-", " ")
        if name is None and isinstance(value, Mapping):
            names = ", ".join(registry.names(self.kind)) or "none is installed"
            text = "the key is missing; add it, with the name of a {kind}: {names}"
            missing = PydanticCustomError("missing_tag", text, {"kind": words, "names": names})
            kind = "string_type" if self.tag in value else missing
            line: InitErrorDetails = {"type": kind, "loc": (self.tag,), "input": value.get(self.tag, value)}
            raise ValidationError.from_exception_data(self.kind, [line])
        if name is None:
            msg = "not a {kind}; write its name, or a mapping with the key {tag}"
            raise PydanticCustomError("reference_type", msg, {"kind": words, "tag": self.tag})
        if name not in registry.names(self.kind):
            problem = PydanticCustomError("unknown_plugin", "{reason}", {"reason": registry.unknown(self.kind, name)})
            at = (self.tag,) if isinstance(value, Mapping) else ()
            raise ValidationError.from_exception_data(self.kind, [{"type": problem, "loc": at, "input": name}])
        return registry.config(self.kind, name)


class Use:
    """``Use["split"]`` annotates a field whose value is any registered plugin of that kind.

    Some linters take a string inside an annotation for a type's name; name it first (``Split = Use["split"]``) and
    annotate with that name to please them.
    """

    def __class_getitem__(cls, kind: Kind) -> Any:
        if kind not in KINDS:
            msg = f"there is no kind of plugin called {kind!r}: {', '.join(KINDS)}"
            raise TypeError(msg)
        return Annotated[BaseModel, Reference(kind)]


def references(annotation: Any, metadata: tuple[Any, ...] = ()) -> Iterator[Reference]:
    """Every reference inside an annotation, however deep in unions and lists."""
    for item in (*metadata, *getattr(annotation, "__metadata__", ())):
        if isinstance(item, Reference):
            yield item
    for inner in get_args(annotation):
        yield from references(inner)


def field_references(field: FieldInfo) -> list[Reference]:
    """Every reference in a field's annotation."""
    return list(references(field.annotation, tuple(field.metadata)))


def is_mutable(field: FieldInfo) -> bool:
    """Whether the option may change when a later phase names the strategy again."""
    extra = field.json_schema_extra
    return isinstance(extra, dict) and extra.get("mutable") is True


def as_line(error: ErrorDetails) -> InitErrorDetails:
    """An error of one validation, to be raised again as part of another."""
    known = {key: value for key, value in error.get("ctx", {}).items() if key != "error"}
    kind = PydanticCustomError(error["type"], error["msg"], known)
    return {"type": kind, "loc": error["loc"], "input": error["input"]}
