"""Plugins: the hook, the typed register, the loader, the registry.

A plugin is a module with a hook implementation, named in the entry-point group ``usdcore``::

    from usdcore.hooks import Register, hookimpl


    @hookimpl
    def usdcore_register(register: Register) -> None:
        register.strategy(name="mine", config=MineConfig, implementation="mine.method:Mine", summary="what it does")
"""

from __future__ import annotations

from usdcore.hooks.facade import PluginRecord, Registry
from usdcore.hooks.loader import Candidate, build_registry, installed, registry, using
from usdcore.hooks.reference import KINDS, Kind
from usdcore.hooks.register import Register, Registration
from usdcore.hooks.spec import hookimpl

__all__ = [
    "KINDS",
    "Candidate",
    "Kind",
    "PluginRecord",
    "Register",
    "Registration",
    "Registry",
    "build_registry",
    "hookimpl",
    "installed",
    "registry",
    "using",
]
