"""What a plugin may register: a typed object is handed to it, so that the core never guesses about return values."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from usdcore.hooks.config import BackboneConfig, DataConfig, PluginConfig

if TYPE_CHECKING:
    from usdcore.hooks.reference import Kind

_NAME = re.compile(r"[A-Za-z][A-Za-z0-9._-]*")
_IMPLEMENTATION = re.compile(r"[A-Za-z_][\w.]*:[A-Za-z_][\w.]*")


@dataclass(frozen=True)
class Registration:
    """One registered thing; `implementation` is ``"package.module:Class"`` (a function, for a backbone), imported on
    first use.
    """

    kind: Kind
    name: str
    config: type[PluginConfig] | type[DataConfig]
    implementation: str
    summary: str


class Register:
    """Handed to `usdcore_register`; collects what one plugin offers.

    Errors: `TypeError` and `ValueError` for what can't be registered. They make the plugin a failed one, with this
    reason, and leave the others alone.
    """

    def __init__(self) -> None:
        self.entries: list[Registration] = []

    def strategy(self, *, name: str, config: type[PluginConfig], implementation: str, summary: str) -> None:
        """Register a compression strategy, built as ``cls(config)``."""
        self._add(Registration("strategy", name, config, implementation, summary), PluginConfig)

    def gate_network(self, *, name: str, config: type[PluginConfig], implementation: str, summary: str) -> None:
        """Register a gate network, built as ``cls(config, width, outputs)``: features [B, C] to logits [B, outputs]."""
        self._add(Registration("gate-network", name, config, implementation, summary), PluginConfig)

    def split(self, *, name: str, config: type[PluginConfig], implementation: str, summary: str) -> None:
        """Register a rule that splits a batch into groups that share decisions, built as ``cls(config)``."""
        self._add(Registration("split", name, config, implementation, summary), PluginConfig)

    def data_source(self, *, name: str, config: type[DataConfig], implementation: str, summary: str) -> None:
        """Register a source of images and labels, built as ``cls(config)``."""
        self._add(Registration("data-source", name, config, implementation, summary), DataConfig)

    def backbone(self, *, name: str, implementation: str, summary: str) -> None:
        """Register a model that `timm.create_model` can make once the implementation's module is imported.

        The implementation is the function of that name which the module gives to `timm.models.register_model`; it has
        no options but timm's ``kwargs``.
        """
        self._add(Registration("backbone", name, BackboneConfig, implementation, summary), PluginConfig)

    def _add(self, entry: Registration, base: type[PluginConfig] | type[DataConfig]) -> None:
        _check_texts(entry)
        _check_config(entry, base)
        if any((entry.kind, entry.name) == (other.kind, other.name) for other in self.entries):
            msg = f"{entry.kind} {entry.name!r} is registered twice"
            raise ValueError(msg)
        self.entries.append(entry)


def _check_texts(entry: Registration) -> None:
    what = f"{entry.kind} {entry.name!r}"
    if not isinstance(entry.name, str) or not _NAME.fullmatch(entry.name):
        msg = f"{what}: a name starts with a letter and goes on with letters, digits, '.', '_' or '-'"
        raise ValueError(msg)
    if not isinstance(entry.implementation, str) or not _IMPLEMENTATION.fullmatch(entry.implementation):
        msg = f"{what}: the implementation is {entry.implementation!r}, not a string 'package.module:Class'"
        raise TypeError(msg)
    if not isinstance(entry.summary, str) or not entry.summary.strip() or "\n" in entry.summary:
        msg = f"{what}: the summary is one line of text, not {entry.summary!r}"
        raise ValueError(msg)


def _check_config(entry: Registration, base: type[Any]) -> None:
    what, config = f"{entry.kind} {entry.name!r}", entry.config
    if not isinstance(config, type) or not issubclass(config, base):
        msg = f"{what}: the config is {config!r}, not a subclass of usdcore.recipe.{base.__name__}"
        raise TypeError(msg)
    if not config.model_config.get("frozen") or config.model_config.get("extra") != "forbid":
        msg = f"{what}: {config.__name__} must stay frozen and forbid unknown keys (leave model_config as it is)"
        raise TypeError(msg)
    # An annotation that can't be resolved would otherwise only show when somebody writes a recipe.
    config.model_rebuild()
