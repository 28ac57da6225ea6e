from __future__ import annotations

import json
from types import SimpleNamespace
from typing import TYPE_CHECKING

import pytest
from pydantic import Field

from usdcore.cli import main
from usdcore.hooks import Candidate, Register, build_registry, hookimpl, using
from usdcore.recipe import PluginConfig, Use

if TYPE_CHECKING:
    from collections.abc import Iterator

Split = Use["split"]


class Base(PluginConfig):
    """Options that two strategies share."""

    ratio: float = Field(gt=0, le=1)
    """Share to keep."""


class Prune(Base):
    """Removes what matters least."""

    heads: bool = True
    noise: tuple[float, float] = (1.0, 0.0)
    split: Split | None = None
    tau: float = Field(default=1.0, json_schema_extra={"mutable": True})
    """Temperature."""


class Plain(PluginConfig):
    """No options."""


@hookimpl
def usdcore_register(register: Register) -> None:
    register.strategy(name="prune", config=Prune, implementation="toys.prune:Prune", summary="removes things")
    register.split(name="prune", config=Plain, implementation="toys.split:Prune", summary="a split of that name")


def _broken() -> object:
    msg = "boom"
    raise RuntimeError(msg)


@pytest.fixture(autouse=True)
def _plugins() -> Iterator[None]:
    toys = SimpleNamespace(__name__="toys", usdcore_register=usdcore_register)
    with using(build_registry(toys, candidates=[Candidate("broken", "broken-dist", "2.0", _broken)])):
        yield


def test_list_as_json(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plugins", "list", "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)
    keys = ("name", "kind", "distribution", "version", "state", "error")
    assert [tuple(row[key] for key in keys) for row in rows] == [
        ("broken", "plugin", "broken-dist", "2.0", "failed", "RuntimeError: boom"),
        ("prune", "strategy", "local", "0", "ok", None),
        ("prune", "split", "local", "0", "ok", None),
    ]


def test_list_for_people(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plugins", "list"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split() == ["name", "kind", "distribution", "version", "state", "summary"]
    assert lines[3].split() == ["prune", "strategy", "local", "0", "ok", "removes", "things"]
    assert lines[-1] == "broken of broken-dist failed: RuntimeError: boom"


def test_show_as_json(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plugins", "show", "prune", "--json"]) == 0
    strategy, split = json.loads(capsys.readouterr().out)
    assert (strategy["kind"], split["kind"]) == ("strategy", "split")
    assert strategy["description"] == "Removes what matters least."
    options = {option["name"]: option for option in strategy["options"]}
    assert options["ratio"] == {
        "name": "ratio",
        "type": "number, > 0, <= 1",
        "required": True,
        "default": None,
        "mutable": False,
        "source": f"{__name__}:Base",
        "description": "Share to keep.",
    }
    assert (options["tau"]["mutable"], options["tau"]["source"]) == (True, f"{__name__}:Prune")
    assert options["split"]["type"] == "a split | null"
    assert (options["noise"]["type"], options["noise"]["default"]) == ("list of 2: number, number", [1.0, 0.0])
    assert (options["use"]["type"], options["use"]["default"]) == ("prune", "prune")


def test_show_for_people(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plugins", "show", "prune"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "prune (strategy): removes things"
    assert lines[2] == "from local 0, toys.prune:Prune"
    rows = {line.split()[0]: line.split() for line in lines if line}
    assert rows["heads"][1:5] == ["true", "|", "false", "true"]
    assert "required" in rows["ratio"]
    assert "prune (split): a split of that name" in lines


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("prun", "error: nothing is registered as 'prun'; did you mean 'prune'?"),
        ("broken", "error: plugin 'broken' of broken-dist 2.0 failed: RuntimeError: boom"),
    ],
)
def test_show_of_what_is_not_there(capsys: pytest.CaptureFixture[str], name: str, message: str) -> None:
    assert main(["plugins", "show", name]) == 1
    assert capsys.readouterr().err.strip() == message
