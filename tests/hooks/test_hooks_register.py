from __future__ import annotations

from typing import Any

import pytest
from pydantic import ConfigDict

from usdcore.hooks import Register
from usdcore.recipe import DataConfig, PluginConfig


class Options(PluginConfig):
    """Options."""


class Loose(PluginConfig):
    """Forgot what a config must be."""

    model_config = ConfigDict(extra="allow")


class Unresolved(PluginConfig):
    """Names a type that does not exist."""

    size: Missing  # type: ignore[name-defined]  # noqa: F821


GOOD: dict[str, Any] = {"name": "a", "config": Options, "implementation": "a.b:C", "summary": "s"}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"name": "9"}, "starts with a letter"),
        ({"name": "a b"}, "starts with a letter"),
        ({"implementation": Options}, "not a string 'package.module:Class'"),
        ({"implementation": "a.b.C"}, "not a string 'package.module:Class'"),
        ({"summary": ""}, "one line of text"),
        ({"summary": "two\nlines"}, "one line of text"),
        ({"config": dict}, r"not a subclass of usdcore.recipe.PluginConfig"),
        ({"config": DataConfig}, r"not a subclass of usdcore.recipe.PluginConfig"),
        ({"config": Loose}, "must stay frozen and forbid unknown keys"),
        ({"config": Unresolved}, "Missing"),
    ],
)
def test_what_cannot_be_registered_says_why(change: dict[str, Any], message: str) -> None:
    with pytest.raises(Exception, match=message):
        Register().strategy(**(GOOD | change))


def test_each_method_registers_its_own_kind() -> None:
    register = Register()
    register.strategy(**GOOD)
    register.gate_network(**GOOD)
    register.split(**GOOD)
    register.data_source(**(GOOD | {"config": DataConfig}))
    register.backbone(name="a", implementation="toys.models:a", summary="a toy")
    kinds = [entry.kind for entry in register.entries]
    assert kinds == ["strategy", "gate-network", "split", "data-source", "backbone"]


def test_a_name_is_registered_once_a_kind() -> None:
    register = Register()
    register.split(**GOOD)
    with pytest.raises(ValueError, match="split 'a' is registered twice"):
        register.split(**GOOD)
