"""Errors become exit codes in one place."""

from __future__ import annotations

import sys
from types import SimpleNamespace
from typing import TYPE_CHECKING

import click
import pytest

from usdcore import cli
from usdcore.errors import BudgetMissed, UsdcoreError

if TYPE_CHECKING:
    from collections.abc import Callable


@pytest.fixture
def raising(monkeypatch: pytest.MonkeyPatch) -> Callable[[BaseException | None], None]:
    """Makes `usdcore run` raise."""

    def install(error: BaseException | None) -> None:
        @click.command()
        def command() -> None:
            if error is not None:
                raise error

        monkeypatch.setitem(sys.modules, "usdcore.cli.run", SimpleNamespace(command=command))

    return install


@pytest.mark.parametrize(
    ("error", "code", "text"),
    [
        (None, 0, ""),
        (UsdcoreError("x: wrong; mend it"), 1, "error: x: wrong; mend it\n"),
        (click.UsageError("no such thing"), 1, "Error: no such thing\n"),
        (click.exceptions.Exit(3), 3, ""),
        (BudgetMissed("0.6 instead of 0.5"), 3, "budget missed: 0.6 instead of 0.5\n"),
        (KeyboardInterrupt(), 130, "interrupted\n"),
    ],
)
def test_exit_codes(
    raising: Callable[[BaseException | None], None],
    capsys: pytest.CaptureFixture[str],
    error: BaseException | None,
    code: int,
    text: str,
) -> None:
    raising(error)
    assert cli.main(["run"]) == code
    assert capsys.readouterr().err.endswith(text)


def test_a_bug_keeps_its_traceback(
    raising: Callable[[BaseException | None], None], capsys: pytest.CaptureFixture[str]
) -> None:
    raising(ZeroDivisionError("oh"))
    assert cli.main(["run"]) == 2
    err = capsys.readouterr().err
    assert "Traceback" in err
    assert "ZeroDivisionError: oh" in err


@pytest.mark.parametrize("arguments", [["--help"], ["--version"], ["recipe", "--help"]])
def test_help_is_no_mistake(capsys: pytest.CaptureFixture[str], arguments: list[str]) -> None:
    assert cli.main(arguments) == 0
    assert "usdcore" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (["recipes"], "there is no command 'recipes'; did you mean 'recipe'?"),
        (["recipe", "validate"], "Missing argument 'RECIPE'"),
        (["plugins", "list", "--jsn"], "No such option"),
    ],
)
def test_usage_mistakes(capsys: pytest.CaptureFixture[str], arguments: list[str], text: str) -> None:
    assert cli.main(arguments) == 1
    assert text in capsys.readouterr().err


def test_every_command_is_listed_with_its_line(capsys: pytest.CaptureFixture[str]) -> None:
    cli.main(["--help"])
    out = capsys.readouterr().out
    for name, line in cli.COMMANDS.items():
        assert f"  {name} " in out
        assert line in out


@pytest.mark.parametrize("name", cli.COMMANDS)
def test_every_command_is_there(name: str) -> None:
    context = click.Context(cli.group)
    assert isinstance(cli.group.get_command(context, name), click.Command)
