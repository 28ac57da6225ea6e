"""One case through everything that reads a recipe; `Broken` says what a case must never do."""

from __future__ import annotations

import contextlib
import io
import json
import os
import re
import time
from pathlib import Path
from typing import TYPE_CHECKING

from usdcore.ablate.loading import at_scale, read_ablation
from usdcore.cli import main
from usdcore.errors import UsdcoreError
from usdcore.recipe import RecipeError, dump_recipe, read_recipe, recipe_sha256

if TYPE_CHECKING:
    from collections.abc import Iterator

    from fuzz.mutate import Case

    from usdcore.recipe import LoadedRecipe

SECONDS = 5.0
"""Of processor time, for reading one recipe."""
TABLE_SECONDS = 30.0
"""For a table with all of its rows at all of its scales, and for listing it."""
LONGEST = 60_000
"""Characters of a message."""
LARGEST = 256
"""Of any number that describes a model in a dry run: each must take a moment only."""
_WHOLE_FILE = ("there is no file", "is a folder", "is no ordinary file", "can't be read", "larger than")
"""Beginnings of what is wrong with a file and no line of it."""
_LEAKS = re.compile(r"Traceback|pydantic|ruamel|<class |<object| object at 0x|Error\(|errno", re.IGNORECASE)


class Broken(AssertionError):
    """A recipe did something else than load or give a clean error."""


def write(case: Case, folder: Path) -> None:
    """The case's files, a folder and a link that leads nowhere."""
    (folder / "folder").mkdir(exist_ok=True)
    if not (folder / "link.yaml").is_symlink():
        (folder / "link.yaml").symlink_to("link.yaml")
    for name, content in case.files.items():
        (folder / name).write_bytes(content)


def read(case: Case) -> LoadedRecipe | None:
    """Load the case in the current folder. None where it is refused, as it should be: cleanly, and soon."""
    started = time.process_time()
    try:
        loaded = read_recipe(case.main, case.overrides)
    except RecipeError as error:
        _check_message(str(error))
        _check_places(error)
        return None
    except Exception as error:
        msg = f"read_recipe raised {type(error).__name__}: {error}"
        raise Broken(msg) from error
    finally:
        took = time.process_time() - started
        if took > SECONDS:
            msg = f"reading took {took:.1f} s"
            raise Broken(msg)
    return loaded


def check_table(case: Case, folder: Path) -> bool:
    """The case as a table of recipes, at each of its scales; listed by the command where it is good. Returns whether it
    is. Errors: `Broken`.
    """
    write(case, folder)
    with inside(folder):
        started = time.process_time()
        try:
            loaded = read_ablation(case.main)
            for scale in loaded.ablation.scales:
                at_scale(loaded, scale, case.overrides)
        except RecipeError as error:
            _check_message(str(error))
            _check_places(error)
            is_good = False
        except Exception as error:
            msg = f"reading a table raised {type(error).__name__}: {error}"
            raise Broken(msg) from error
        else:
            is_good = True
            check_command(["ablate", "--list", "--json", *_sets(case), "--", case.main], good=True)
        took = time.process_time() - started
        if took > TABLE_SECONDS:
            msg = f"reading a table took {took:.1f} s"
            raise Broken(msg)
    return is_good


def _sets(case: Case) -> list[str]:
    return [part for override in case.overrides for part in ("--set", override)]


def check_dump(loaded: LoadedRecipe) -> None:
    """What loads is written so that it loads again, equal and with an equal hash."""
    recipe = loaded.recipe
    text = dump_recipe(recipe)
    Path("dumped.yaml").write_text(text, encoding="utf-8", newline="")
    try:
        again = read_recipe("dumped.yaml").recipe
    except UsdcoreError as error:
        msg = f"the dump does not load: {error}"
        raise Broken(msg) from error
    if again != recipe:
        msg = "the dump loads as another recipe"
        raise Broken(msg)
    if recipe_sha256(again) != recipe_sha256(recipe) or dump_recipe(again) != text:
        msg = "the dump loads as an equal recipe with another hash or another dump"
        raise Broken(msg)


def check_command(arguments: list[str], *, good: bool) -> str:
    """A command in this process ends with 0 or 1 as it should, and prints what a terminal can take."""
    out, err = _Terminal(), _Terminal()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        code = main(arguments)
    if code != (0 if good else 1):
        msg = f"{arguments} gave exit code {code}: {err.getvalue()[-2000:]}"
        raise Broken(msg)
    if not good:
        _check_message(err.getvalue().removesuffix("\n"))
    return out.getvalue()


class _Terminal(io.StringIO):
    """Refuses what UTF-8 can't say, as a real one does."""

    def write(self, text: str) -> int:
        text.encode()
        return super().write(text)


def check(case: Case, folder: Path) -> bool:
    """Everything, in `folder`. Returns whether the recipe is good. Errors: `Broken`."""
    write(case, folder)
    with inside(folder):
        loaded = read(case)
        if loaded is not None:
            check_dump(loaded)
        sets = _sets(case)
        for command in ("validate", "show") if loaded is not None else ("validate",):
            check_command(["recipe", command, *sets, "--", case.main], good=loaded is not None)
        if loaded is not None:
            json.loads(check_command(["recipe", "show", "--json", *sets, "--", case.main], good=True))
    return loaded is not None


@contextlib.contextmanager
def inside(folder: Path) -> Iterator[None]:
    """The current folder, for a while."""
    before = Path.cwd()
    os.chdir(folder)
    try:
        yield
    finally:
        os.chdir(before)


def _check_message(text: str, *, foreign: bool = False) -> None:
    """`foreign`: it may repeat what torch or timm say, in their words."""
    if not text.strip() or len(text) > LONGEST:
        msg = f"a message of {len(text)} characters: {text[:200]!r}"
        raise Broken(msg)
    bad = [line for line in text.split("\n") if not line.isprintable() or (not foreign and _LEAKS.search(line))]
    if bad:
        msg = f"a line of a message that is not clean: {bad[0][:300]!r}"
        raise Broken(msg)


def _check_places(error: RecipeError) -> None:
    for problem in error.problems:
        origin = problem.origin
        if not origin.file or not problem.text:
            msg = f"a mistake without a place or a text: {problem}"
            raise Broken(msg)
        whole = origin.file.startswith("--set ") or any(start in problem.text for start in _WHOLE_FILE)
        if origin.line < 1 and not whole:
            msg = f"a mistake without its line: {problem}"
            raise Broken(msg)


def check_plan(text: str, folder: Path) -> bool | None:
    """The plan of a recipe that loads is a plan or a clean error. None where it does not load or is too large."""
    (folder / "x.yaml").write_bytes(text.encode(errors="surrogatepass"))
    try:
        recipe = read_recipe(folder / "x.yaml").recipe
    except UsdcoreError:
        return None
    if max([recipe.data.input_size, *_numbers(recipe.model.kwargs)]) > LARGEST:
        return None
    out, err = _Terminal(), _Terminal()
    with inside(folder), contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        code = main(["plan", "x.yaml", "--probe", "0"])
    if code == 0:
        return True
    message = err.getvalue().removeprefix("error: ").removesuffix("\n")
    if code != 1:
        msg = f"plan gave exit code {code}: {message[-2000:]}"
        raise Broken(msg)
    _check_message(message, foreign=True)
    lines = message.split("\n")
    if not all(re.match(r"x\.yaml:\d+:\d+ [a-z]", line) for line in lines[len(lines) > 1 :]):
        msg = f"a mistake without its line: {message}"
        raise Broken(msg)
    return False


def _numbers(value: object) -> list[float]:
    if isinstance(value, dict | list):
        return [n for inner in (value.values() if isinstance(value, dict) else value) for n in _numbers(inner)]
    return [value] if isinstance(value, int | float) else []
