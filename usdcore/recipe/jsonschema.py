"""The JSON schema of a whole recipe, with what the installed plugins add: for completion in editors."""

from __future__ import annotations

from typing import Any

from usdcore.hooks.loader import registry
from usdcore.hooks.reference import KINDS, SCHEMA_KEY, tag_of
from usdcore.recipe.schema import Recipe

_DIALECT = "https://json-schema.org/draft/2020-12/schema"


def recipe_schema() -> dict[str, Any]:
    """The schema of a recipe file, `extends` included; each place for a plugin lists the registered ones."""
    # Slow to import, and only the schema needs it; every command that reads a recipe imports this module.
    from pydantic.json_schema import models_json_schema

    plugins = registry()
    configs = {(kind, name): plugins.config(kind, name) for kind in KINDS for name in plugins.names(kind)}
    classes = [(Recipe, "validation"), *((config, "validation") for config in configs.values())]
    references, document = models_json_schema(classes, ref_template="#/$defs/{model}")  # type: ignore[arg-type]
    definitions: dict[str, Any] = document["$defs"]
    for kind in KINDS:
        names = plugins.names(kind)
        choices = [references[configs[kind, name], "validation"] for name in names]
        for choice in choices:
            _require(definitions[choice["$ref"].rpartition("/")[2]], tag_of(kind))
        definitions[kind] = {"title": kind, "anyOf": [{"enum": list(names)}, *choices]}
    root = definitions.pop(references[Recipe, "validation"]["$ref"].rpartition("/")[2])
    root["properties"]["extends"] = {
        "description": "Files that this one is merged over, relative to it; earlier ones first.",
        "anyOf": [{"type": "string"}, {"type": "array", "items": {"type": "string"}}],
    }
    schema = {"$schema": _DIALECT, **root, "$defs": definitions}
    _link(schema)
    return schema


def _require(definition: dict[str, Any], tag: str) -> None:
    """In a mapping the tag must be there, though the class has it as its default."""
    definition["required"] = [tag, *(key for key in definition.get("required", []) if key != tag)]


def _link(value: Any) -> None:
    """Replace each mark of a place for a plugin by a reference to the plugins of that kind."""
    if isinstance(value, dict):
        kind = value.pop(SCHEMA_KEY, None)
        if kind is not None:
            del value["anyOf"]
            value["$ref"] = f"#/$defs/{kind}"
        for inner in value.values():
            _link(inner)
    elif isinstance(value, list):
        for inner in value:
            _link(inner)
