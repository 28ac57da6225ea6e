from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, Literal

import pytest
from pydantic import Field, ValidationError

from usdcore.hooks import Register, build_registry, hookimpl, using
from usdcore.recipe import PluginConfig, Use

if TYPE_CHECKING:
    from collections.abc import Iterator


Split = Use["split"]


class Halves(PluginConfig):
    """A split."""

    least: int = Field(default=1, ge=1)
    """Smallest part."""
    sizes: tuple[int, ...] = (1,)
    file: Path = Path("x")


class Gate(PluginConfig):
    """A strategy that needs a split, and perhaps others."""

    split: Split = "halves"
    others: list[Split] = Field(default_factory=list)
    either: Literal["none"] | Split = "none"


@hookimpl
def usdcore_register(register: Register) -> None:
    register.split(name="halves", config=Halves, implementation="a:B", summary="s")
    register.split(name="thirds", config=Halves, implementation="a:B", summary="s")
    register.strategy(name="gate", config=Gate, implementation="a:B", summary="s")


@pytest.fixture(autouse=True)
def _plugins() -> Iterator[None]:
    with using(build_registry(SimpleNamespace(__name__="toys", usdcore_register=usdcore_register))):
        yield


def from_file(**options: Any) -> Any:
    return Gate.model_validate_json(json.dumps({"use": "gate", **options}), strict=True)


def test_a_default_means_that_plugins_options() -> None:
    for gate in (Gate(use="gate"), from_file()):
        assert isinstance(gate.split, Halves)
        assert (gate.split.use, gate.split.least) == ("halves", 1)
        assert gate.either == "none"


@pytest.mark.parametrize("make", [lambda **o: Gate(use="gate", **o), from_file])
def test_a_name_and_a_mapping_with_that_name_are_the_same(make: Any) -> None:
    assert make(split="thirds") == make(split={"use": "thirds"})
    gate = make(split={"use": "thirds", "least": 2, "sizes": [3, 4]}, others=["halves", {"use": "thirds"}])
    assert (gate.split.use, gate.split.least, gate.split.sizes) == ("thirds", 2, (3, 4))
    assert [other.use for other in gate.others] == ["halves", "thirds"]
    assert make(either="thirds").either.use == "thirds"


def test_objects_are_taken_and_given_back() -> None:
    gate = Gate(use="gate", split=Halves(use="thirds", least=5))
    assert (gate.split.use, gate.split.least) == ("thirds", 5)
    assert Gate(use="gate", split=gate.split).split is gate.split
    assert Gate.model_validate(gate.model_dump()) == gate
    assert Gate.model_validate_json(gate.model_dump_json(), strict=True) == gate


@pytest.mark.parametrize(
    ("options", "where", "kind"),
    [
        ({"split": "halfs"}, ("split",), "unknown_plugin"),
        ({"split": {"use": "halfs"}}, ("split", "use"), "unknown_plugin"),
        ({"split": {"least": 2}}, ("split", "use"), "missing_tag"),
        ({"split": {"use": None}}, ("split", "use"), "string_type"),
        ({"split": 3}, ("split",), "reference_type"),
        ({"split": {"use": "halves", "least": 0}}, ("split", "least"), "greater_than_equal"),
        ({"split": {"use": "halves", "lest": 1}}, ("split", "lest"), "extra_forbidden"),
        ({"others": ["halves", {"use": "thirds", "sizes": [1, "2"]}]}, ("others", 1, "sizes", 1), "int_type"),
    ],
)
def test_errors_keep_their_place(options: dict[str, Any], where: tuple[Any, ...], kind: str) -> None:
    with pytest.raises(ValidationError) as caught:
        from_file(**options)
    assert [(error["loc"], error["type"]) for error in caught.value.errors()] == [(where, kind)]


def test_files_are_read_strictly_and_objects_are_not() -> None:
    assert Gate(use="gate", split={"use": "halves", "least": "3"}).split.least == 3
    with pytest.raises(ValidationError):
        from_file(split={"use": "halves", "least": "3"})
    assert from_file(split={"use": "halves", "file": "here"}).split.file == Path("here")


def test_a_kind_that_does_not_exist_is_a_programming_error() -> None:
    with pytest.raises(TypeError, match="gate-network"):
        Use["gates"]  # type: ignore[misc]
