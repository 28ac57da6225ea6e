"""Find plugins, load each on its own, and keep a record of every one: a broken plugin breaks nothing but itself."""

from __future__ import annotations

import functools
import os
import re
import sys
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from importlib import metadata
from typing import TYPE_CHECKING, Literal

import pluggy

from usdcore.hooks import spec
from usdcore.hooks.facade import PluginRecord, Registry, describe
from usdcore.hooks.register import Register, Registration

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping

    Owners = Mapping[tuple[str, str], PluginRecord]

VARIABLE = "USDCORE_PLUGINS"
"""Names the distributions whose plugins load beside usdcore's own, separated by commas; empty: usdcore's own only."""

NEEDS_TORCH = (
    "importing it imports torch, which every listing would then wait for; import torch in the implementation's module "
    "only, and register that as a 'package.module:Class' string"
)


@dataclass(frozen=True)
class Candidate:
    """A plugin that was found and not loaded yet; `load` imports it."""

    name: str
    distribution: str
    version: str
    load: Callable[[], object]


def installed() -> list[Candidate]:
    """Every entry point of the group `usdcore`: usdcore's own first, then by distribution and name."""
    found = []
    for point in metadata.entry_points(group=spec.NAME):
        dist = point.dist
        name, version = (dist.name, dist.version) if dist is not None else ("unknown", "unknown")
        found.append(Candidate(point.name, name, version, point.load))
    return sorted(found, key=lambda c: (_normal(c.distribution) != spec.NAME, _normal(c.distribution), c.name))


def build_registry(*plugins: object, candidates: Iterable[Candidate] = ()) -> Registry:
    """A fresh registry of the given modules (or objects with hook implementations), after `candidates`.

    For tests: ``with using(build_registry(my_plugin, candidates=installed())): ...``
    """
    local = [Candidate(_name_of(p), "local", "0", functools.partial(_identity, p)) for p in plugins]
    return _build([*candidates, *local])


@functools.cache
def installed_registry() -> Registry:
    """The registry of everything that is installed and not excluded by `USDCORE_PLUGINS`; built once."""
    candidates = installed()
    wanted = os.environ.get(VARIABLE)
    if wanted is None:
        return _build(candidates)
    names = {_normal(part): part.strip() for part in wanted.split(",") if part.strip()}
    there = {_normal(c.distribution) for c in candidates}
    missing = [
        PluginRecord(
            name, name, "", "failed", f"{VARIABLE} names it, but no distribution of that name with plugins is installed"
        )
        for normal, name in names.items()
        if normal not in there
    ]
    chosen = [c for c in candidates if _normal(c.distribution) in {spec.NAME, *names}]
    return _build(chosen, missing, sorted({c.distribution for c in candidates if c not in chosen}))


_ACTIVE: ContextVar[Registry | None] = ContextVar("usdcore_registry", default=None)


def registry() -> Registry:
    """The registry in force: the one given to `using`, else that of everything installed."""
    return _ACTIVE.get() or installed_registry()


@contextmanager
def using(replacement: Registry) -> Iterator[Registry]:
    """Make `registry()` return another registry inside the block, in this thread or task."""
    token = _ACTIVE.set(replacement)
    try:
        yield replacement
    finally:
        _ACTIVE.reset(token)


def _build(
    candidates: Iterable[Candidate], records: Iterable[PluginRecord] = (), left_out: Iterable[str] = ()
) -> Registry:
    loaded: list[PluginRecord] = []
    owners: dict[tuple[str, str], PluginRecord] = {}
    for candidate in candidates:
        record = _load(candidate, owners)
        loaded.append(record)
        owners |= {(entry.kind, entry.name): record for entry in record.entries}
    return Registry([*loaded, *records], left_out)


def _load(candidate: Candidate, owners: Owners) -> PluginRecord:
    def record(error: str | None, entries: tuple[Registration, ...] = ()) -> PluginRecord:
        state: Literal["ok", "failed"] = "ok" if error is None else "failed"
        return PluginRecord(candidate.name, candidate.distribution, candidate.version, state, error, entries)

    had_torch = "torch" in sys.modules
    try:
        entries = _entries(candidate)
    except (Exception, SystemExit) as error:  # whatever a stranger's module raises is its own failure
        return record(describe(error))
    if not had_torch and "torch" in sys.modules:
        return record(NEEDS_TORCH)
    for entry in entries:
        owner = owners.get((entry.kind, entry.name))
        if owner is not None:
            return record(
                f"{entry.kind} {entry.name!r} of {candidate.name} ({candidate.distribution}) is already registered by "
                f"{owner.name} ({owner.distribution}); rename one or uninstall one"
            )
    return record(None, entries)


def _entries(candidate: Candidate) -> tuple[Registration, ...]:
    """Import and register one plugin alone: pluggy aborts a shared call at the first error without saying whose."""
    manager = pluggy.PluginManager(spec.NAME)
    manager.add_hookspecs(spec)
    manager.register(candidate.load(), name=candidate.name)
    manager.check_pending()
    if not manager.hook.usdcore_register.get_hookimpls():
        msg = "it has no usdcore_register marked with @hookimpl (from usdcore.hooks)"
        raise TypeError(msg)
    register = Register()
    manager.hook.usdcore_register(register=register)
    return tuple(register.entries)


def _identity(plugin: object) -> object:
    return plugin


def _name_of(plugin: object) -> str:
    return str(getattr(plugin, "__name__", type(plugin).__name__))


def _normal(distribution: str) -> str:
    """The normal form of a distribution's name, by the packaging standards."""
    return re.sub(r"[-_.]+", "-", distribution.strip()).lower()
