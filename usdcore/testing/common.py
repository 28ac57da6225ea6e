"""Laws of every kind: registration is cheap, options are documented and validated. Imports no torch."""

from __future__ import annotations

import functools
import json
import os
import subprocess
import sys
from typing import TYPE_CHECKING, Any

from pydantic import ValidationError

from usdcore.hooks.loader import VARIABLE
from usdcore.hooks.reference import tag_of
from usdcore.recipe.options import describe_options
from usdcore.testing.laws import Broken

if TYPE_CHECKING:
    from usdcore.testing.subject import Subject

_LIST = """
import json, sys
from usdcore.hooks import registry
records = registry().records()
found = [[r.name, r.distribution, r.state, r.error, [[e.kind, e.name] for e in r.entries]] for r in records]
print(json.dumps([found, [name for name in ("torch", "timm", "torchvision") if name in sys.modules]]))
"""


def registers(subject: Subject) -> None:
    """In a new process the plugin is found, is healthy, and brings in neither torch nor timm."""
    from usdcore.hooks import registry

    is_known = subject.name in registry().names(subject.kind)
    owner = registry().plugin(subject.kind, subject.name).distribution if is_known else None
    done = _listed(os.pathsep.join(part for part in sys.path if part), owner)
    if done.returncode:
        last = done.stderr.strip().splitlines()[-1:]
        raise Broken(subject.where, f"listing plugins ends with {' '.join(last)}", "see `usdcore plugins list`")
    records, heavy = json.loads(done.stdout.splitlines()[-1])
    if [subject.kind, subject.name] not in [entry for record in records for entry in record[4]]:
        failed = [f"{name} of {place}: {error}" for name, place, state, error, _ in records if state == "failed"]
        what = f"no installed plugin registers it{'; failed: ' if failed else ''}{'; '.join(failed)}"
        do = "mend what failed; else install the package (pip install -e .) with an entry point in the group `usdcore`"
        raise Broken(subject.where, what, do)
    if heavy:
        do = "import it in the implementation's module only, and name that as a 'package.module:Class' string"
        raise Broken(subject.where, f"registering plugins imports {', '.join(heavy)}", do)


@functools.cache
def _listed(path: str, owner: str | None) -> subprocess.CompletedProcess[str]:
    """A new process's listing of usdcore's plugins and those of one other distribution, or of all."""
    environment = {**os.environ, "PYTHONPATH": path}
    if owner is not None:  # nobody else's torch
        environment[VARIABLE] = owner
    command = [sys.executable, "-c", _LIST]
    return subprocess.run(command, capture_output=True, text=True, env=environment, timeout=120, check=False)


def documented(subject: Subject) -> None:
    """The summary, the class and every option of it say what they mean."""
    from usdcore.hooks import registry

    entry = registry().entry(subject.kind, subject.name)
    config = registry().config(subject.kind, subject.name)
    where = f"{subject.where}, its options {entry.config.__module__}:{entry.config.__name__}"
    if not (entry.config.__doc__ or "").strip():
        raise Broken(where, "the class has no docstring", "write one: `usdcore plugins show` prints it")
    silent = [option["name"] for option in describe_options(config) if not option["description"]]
    if silent:
        what = f"the options {', '.join(silent)} say nothing about themselves"
        raise Broken(where, what, 'put a docstring under each field: power: float = 2.0\\n"""Norm that scores."""')


class _Anything:
    """A value that no recipe holds."""


def validated(subject: Subject) -> None:
    """The options of the tests are valid and survive being written down; unknown keys and values of no type are
    refused; defaults are themselves valid.
    """
    from usdcore.hooks import registry

    config: Any = registry().config(subject.kind, subject.name)
    try:
        own = subject.config()
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        what = f"the options of this test are refused: {'.'.join(map(str, first['loc']))}: {first['msg']}"
        raise Broken(subject.where, what, "give conformance(..., options={...}) what is required") from None
    try:
        again = config.model_validate_json(own.model_dump_json(), strict=True)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        what = f"a value that options have is refused when a recipe states it: {'.'.join(map(str, first['loc']))}"
        raise Broken(subject.where, f"{what}: {first['msg']}", "give each option a valid default") from None
    if again != own:
        raise Broken(subject.where, "written as JSON and read again the options differ", "use types that JSON has")
    stated = {name: getattr(own, name) for name in own.model_fields_set}
    for name in config.model_fields:
        if name != tag_of(subject.kind) and _takes(config, {**stated, name: _Anything()}):
            raise Broken(subject.where, f"the option {name!r} takes anything", "give it a type, and bounds")
    if _takes(config, {**stated, "no_option_has_this_name": 1}):
        raise Broken(subject.where, "unknown options are taken", "leave model_config as it is")


def _takes(config: Any, options: dict[str, Any]) -> bool:
    try:
        config.model_validate(options)
    except ValidationError:
        return False
    return True
