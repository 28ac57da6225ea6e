"""Options. Imports no torch."""

from typing import Any

from usdcore.recipe import DataConfig, PluginConfig


class Silent(PluginConfig):
    """No options."""


class Mute(PluginConfig):
    """An option that says nothing about itself."""

    power: float = 2.0


class Loose(PluginConfig):
    """An option that takes anything."""

    power: Any = 2.0
    """Some number, probably."""


class Source(DataConfig):
    """No further options."""
