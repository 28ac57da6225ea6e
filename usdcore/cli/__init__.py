"""The command line: a group that imports a command when it is used, and the place where errors become exit codes."""

from __future__ import annotations

import importlib
import os
import sys
import traceback
from typing import TYPE_CHECKING, Any

import click

from usdcore.errors import BudgetMissed, UsdcoreError, nearest

if TYPE_CHECKING:
    from collections.abc import Sequence

COMMANDS = {
    "recipe": "Validate or show a recipe, or print its schema.",
    "plan": "Dry run: the units, the budget, the phases; needs no data.",
    "run": "Run a recipe; resumes by itself.",
    "ablate": "Run a table of recipes and print it beside the paper's.",
    "eval": "Evaluate a run's compressed model again.",
    "bench": "Latency and throughput beside the dense model and its MACs.",
    "report": "Make a run's report again.",
    "units": "The units found in a model, with their MACs.",
    "plugins": "List what is installed, or show one plugin's options.",
}
"""Command -> its line in the help. Each lives in ``usdcore.cli.<name>`` as `command`, imported on use."""

GOOD, MISTAKE, BUG, MISSED, INTERRUPTED = 0, 1, 2, 3, 130


class LazyGroup(click.Group):
    """Lists its commands without importing them: some need torch, and `--help` must not wait for it."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """The commands, in the order of a user's first hour."""
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Import one command. Errors: a usage error for an unknown one, with the nearest names."""
        if cmd_name not in COMMANDS:
            ctx.fail(f"there is no command {cmd_name!r}; {nearest(cmd_name, COMMANDS)}")
        command: click.Command = importlib.import_module(f"usdcore.cli.{cmd_name}").command
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """The help's list of commands."""
        with formatter.section("Commands"):
            formatter.write_dl(list(COMMANDS.items()))


def _print_version(ctx: click.Context, _param: click.Parameter, wanted: bool) -> None:
    if wanted:
        click.echo(f"usdcore {importlib.import_module('usdcore').__version__}")
        ctx.exit()


@click.group(cls=LazyGroup, context_settings={"help_option_names": ["-h", "--help"]})
@click.option(
    "--version", is_flag=True, is_eager=True, expose_value=False, callback=_print_version, help="The version."
)
def group() -> None:
    """Compress Vision Transformers: static pruning and dynamic skipping under one budget.

    Exit codes: 0 good, 1 your mistake, 2 a bug, 3 finished but the budget missed, 130 interrupted.
    """


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line.

    Args:
        argv: arguments without the program's name; default: those of this process.

    Returns:
        The exit code: 0 good, 1 the user's mistake, 2 a bug, 3 finished but the budget missed, 130 interrupted.
    """
    try:
        result: Any = group.main(args=None if argv is None else list(argv), prog_name="usdcore", standalone_mode=False)
    except click.exceptions.Abort:
        click.echo("interrupted", err=True)
        return INTERRUPTED
    except KeyboardInterrupt:
        click.echo("interrupted", err=True)
        return INTERRUPTED
    except click.ClickException as error:
        error.show()
        return MISTAKE
    except BudgetMissed as error:
        click.echo(f"budget missed: {error}", err=True)
        return MISSED
    except UsdcoreError as error:
        click.echo(f"error: {error}", err=True)
        return MISTAKE
    except PermissionError as error:
        click.echo(f"error: {error.filename}: {error.strerror}", err=True)
        return MISTAKE
    except BrokenPipeError:
        # Whoever read our output has gone; without this, Python would fail again while flushing at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return GOOD
    except Exception:
        traceback.print_exc()
        click.echo("this is a bug in usdcore or in a plugin; please report it with the lines above", err=True)
        return BUG
    return result if type(result) is int else GOOD
