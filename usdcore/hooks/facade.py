"""The registry: one typed method for each question about plugins, so that nothing else touches pluggy."""

from __future__ import annotations

import importlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from pydantic import BaseModel, Field, create_model

from usdcore.errors import UsdcoreError, brief, nearest
from usdcore.hooks.reference import KINDS, tag_of

if TYPE_CHECKING:
    from collections.abc import Iterable

    from usdcore.hooks.reference import Kind
    from usdcore.hooks.register import Registration


@dataclass(frozen=True)
class PluginRecord:
    """One plugin as it was found: where it comes from, whether it works, what it registered."""

    name: str
    distribution: str
    version: str
    state: Literal["ok", "failed"]
    error: str | None = None
    entries: tuple[Registration, ...] = ()


class Registry:
    """What the healthy plugins registered, and why the others failed.

    Args:
        records: no two of them may register the same (kind, name).
        left_out: distributions with plugins that the environment excluded.
    """

    def __init__(self, records: Iterable[PluginRecord], left_out: Iterable[str] = ()) -> None:
        self._records = tuple(records)
        self._left_out = tuple(left_out)
        self._entries = {(e.kind, e.name): (record, e) for record in self._records for e in record.entries}
        self._configs: dict[tuple[str, str], type[BaseModel]] = {}

    def records(self) -> tuple[PluginRecord, ...]:
        """Every plugin that was found, failed ones included, in loading order."""
        return self._records

    def names(self, kind: Kind) -> tuple[str, ...]:
        """The registered names of one kind, sorted. Errors: `ValueError` for a kind that does not exist."""
        if kind not in KINDS:
            msg = f"there is no kind of plugin called {kind!r}: {nearest(kind, KINDS)}"
            raise ValueError(msg)
        return tuple(sorted(name for entry_kind, name in self._entries if entry_kind == kind))

    def entry(self, kind: Kind, name: str) -> Registration:
        """What was registered under a name. Errors: `UsdcoreError` for an unknown one."""
        return self._find(kind, name)[1]

    def plugin(self, kind: Kind, name: str) -> PluginRecord:
        """The plugin that registered a name. Errors: `UsdcoreError` for an unknown one."""
        return self._find(kind, name)[0]

    def config(self, kind: Kind, name: str) -> type[Any]:
        """The options of a registered name: a subclass of its config class whose tag accepts that name only.

        Errors: `UsdcoreError` for an unknown name.
        """
        entry = self.entry(kind, name)
        if (kind, name) not in self._configs:
            tag: Any = (Literal[name], Field(default=name, description=f"The {kind.replace('-', ' ')}'s name."))
            fields: dict[str, Any] = {tag_of(kind): tag}
            base = entry.config
            self._configs[kind, name] = create_model(
                base.__name__,
                __base__=base,
                __module__=base.__module__,
                __doc__=base.__doc__,
                # A generated class has no source in which to look for descriptions; looking takes long.
                __cls_kwargs__={"use_attribute_docstrings": False},
                **fields,
            )
        return self._configs[kind, name]

    def load(self, kind: Kind, name: str) -> type[Any]:
        """Import the implementation of a registered name.

        Errors: `UsdcoreError` for an unknown name, and for an implementation that can't be imported or is not there.
        """
        record, entry = self._find(kind, name)
        module, _, attribute = entry.implementation.partition(":")
        try:
            found: Any = importlib.import_module(module)
            for part in attribute.split("."):
                found = getattr(found, part)
        except (ImportError, AttributeError) as error:
            msg = (
                f"{kind} {name!r} can't be loaded: {entry.implementation} gave {describe(error)}; "
                f"mend or reinstall {record.distribution} {record.version}, which registered it"
            )
            raise UsdcoreError(msg) from error
        implementation: type[Any] = found
        return implementation

    def unknown(self, kind: Kind, name: str) -> str:
        """Why nothing has this name: the nearest names, and the plugins that failed or were left out."""
        text = f"no {kind.replace('-', ' ')} is named {brief(name)!r}; {nearest(name, self.names(kind))}"
        others = [other.replace("-", " ") for other, entry_name in self._entries if entry_name == name]
        if others:
            text += f" ({name!r} is a {' and a '.join(others)})"
        return text + self.absent()

    def absent(self) -> str:
        """The plugins that failed or were left out, which may have had what is not there; empty where all are well."""
        text = ""
        failed = [f"{r.name} of {r.distribution} ({r.error})" for r in self._records if r.state == "failed"]
        if failed:
            text += f" (plugins that failed to load and may have had it: {', '.join(failed)})"
        if self._left_out:
            text += f" (left out by USDCORE_PLUGINS: {', '.join(self._left_out)})"
        return text

    def _find(self, kind: Kind, name: str) -> tuple[PluginRecord, Registration]:
        if (kind, name) not in self._entries:
            raise UsdcoreError(self.unknown(kind, name))
        return self._entries[kind, name]


def describe(error: BaseException) -> str:
    """An exception on one line: its type and message."""
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text}" if text else type(error).__name__
