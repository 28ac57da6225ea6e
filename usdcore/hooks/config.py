"""The base classes of a plugin's options: frozen, unknown keys refused, and a tag that names the plugin."""

from __future__ import annotations

from typing import Any, ClassVar

from pydantic import BaseModel, ConfigDict, Field

from usdcore.hooks.reference import field_references


class _Options(BaseModel):
    """What all options have in common."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True, ser_json_inf_nan="constants")

    @classmethod
    def __pydantic_init_subclass__(cls, **kwargs: Any) -> None:
        """Validate defaults that name another plugin, so that the default "recursive" means that split's options."""
        super().__pydantic_init_subclass__(**kwargs)
        changed = False
        for field in cls.model_fields.values():
            if not field.is_required() and not field.validate_default and field_references(field):
                field.validate_default = changed = True
        if changed:
            cls.model_rebuild(force=True)


class PluginConfig(_Options):
    """Options of a strategy, gate network or split; subclass it and add fields.

    Registering a class under a name generates a subclass whose `use` accepts that name only, so one class may serve
    several names. A field that may change when a later phase names the strategy again is declared with
    ``Field(json_schema_extra={"mutable": True})``. A docstring under a field is its description.
    """

    use: str
    """The registered name."""


class DataConfig(_Options):
    """Options of a data source; subclass it and add fields. Its tag is `source`."""

    channels: ClassVar[int] = 3
    """Of its images; for what is asked before any is read."""

    source: str
    """The registered name."""
    input_size: int = Field(ge=1)
    """Side of the square input image, in pixels."""
    batch_size: int = Field(ge=1)
    """Training images per step."""
    workers: int = Field(default=0, ge=0)
    """Loader processes; 0 loads in the main process."""
    augment: str = "none"
    """Training augmentation, by the data source's own names."""
