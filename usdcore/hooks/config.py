"""The base classes of a plugin's options: frozen, unknown keys refused, and a tag that names the plugin."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from pydantic import BaseModel, ConfigDict, Field

from usdcore.hooks.reference import field_references

if TYPE_CHECKING:
    from collections.abc import Iterable


@dataclass(frozen=True)
class Beside:
    """What stands beside a strategy's options in a recipe: images per training step, epochs of all phases that name it,
    and of the first of these.
    """

    batch_size: int
    epochs: int
    first: int


class _Options(BaseModel):
    """What all options have in common. Infinities and NaN are refused; a field may allow them for itself."""

    model_config = ConfigDict(
        frozen=True,
        extra="forbid",
        use_attribute_docstrings=True,
        allow_inf_nan=False,
        ser_json_inf_nan="constants",
    )

    removed: ClassVar[dict[str, str]] = {}
    """Options that earlier versions had, and for each what to do instead: a recipe that states one is told that."""

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

    alone: ClassVar[frozenset[str]] = frozenset()
    """Kinds of sites ("tokens") at which no other strategy of a recipe may act that names them here too."""

    use: str
    """The registered name."""

    def mistakes(self, beside: Beside) -> Iterable[tuple[str, str]]:
        """What is wrong with these options in this recipe, although each is valid by itself; by default nothing.

        Yields an option's name ("" where it is none of them) and a text that says what is wrong and what to do. Asked
        when a recipe is loaded, of a strategy and of every plugin inside its options.
        """
        return ()


class BackboneConfig(PluginConfig):
    """A backbone has no options of its own: a recipe names it in `model`, where `kwargs` are its constructor's."""


class DataConfig(_Options):
    """Options of a data source; subclass it and add fields. Its tag is `source`."""

    channels: ClassVar[int] = 3
    """Of its images; for what is asked before any is read."""

    source: str
    """The registered name."""
    input_size: int = Field(ge=1, le=65536)
    """Side of the square input image, in pixels."""
    batch_size: int = Field(ge=1, le=2**24)
    """Training images per step, over all processes of a run."""
    workers: int = Field(default=0, ge=0, le=1024)
    """Loader processes; 0 loads in the main process."""
    augment: str = "none"
    """Training augmentation, by the data source's own names."""

    def known_classes(self) -> int | None:
        """The number of classes, where it is known before any image is read; the model must have as many."""
        return None

    def known_images(self) -> tuple[int | None, int | None]:
        """Images to train and to evaluate on, each where it is known before any image is read, for `usdcore plan`.

        Nothing may be fetched; files that are here may be listed. Errors: those of loading, for files that are here.
        """
        return None, None
