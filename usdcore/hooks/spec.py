"""The one hook: a plugin module says what it offers. What happens at every step belongs on the objects it registers."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pluggy

if TYPE_CHECKING:
    from usdcore.hooks.register import Register

NAME = "usdcore"
"""The pluggy project and the entry-point group."""

hookspec = pluggy.HookspecMarker(NAME)
hookimpl = pluggy.HookimplMarker(NAME)
"""Marks a plugin's implementation of a hook."""


@hookspec
def usdcore_register(register: Register) -> None:
    """Tell `usdcore` what this plugin offers.

    Fires once for each plugin, when the registry is first asked for anything (listing plugins, validating a recipe,
    starting a run), before any model exists. The module that implements it must stay cheap: an implementation is named
    as the string ``"package.module:Class"`` and imported on first use.

    Args:
        register: takes the strategies, gate networks, splits, data sources and backbones of this plugin alone.
    """
