"""What `usdcore plugins new` writes: the files of a working package, with a name filled in. Imports no torch."""

from __future__ import annotations

import importlib.util
import keyword
import re
import secrets
import shutil
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from usdcore.errors import UsdcoreError, brief

if TYPE_CHECKING:
    from collections.abc import Mapping

_TEMPLATES = Path(__file__).parent / "strategy"
_NAME = re.compile(r"[a-z][a-z0-9]*(-[a-z0-9]+)*")
_LONGEST = 50


def write_package(name: str, folder: Path) -> list[Path]:
    """Write a package with a strategy called `name` into `folder`/`name`; returns the files, in order.

    They are written aside and appear at once. Errors: a name that can't be one, that is taken, or a folder that is
    there already. Then nothing is written.
    """
    _require_name(name)
    root = folder / name
    if root.exists() or root.is_symlink():
        msg = f"{root} is there already, and nothing in it was changed; choose another name, or move it away"
        raise UsdcoreError(msg)
    texts = {path: _filled(template.read_text(), _values(name)) for path, template in _files(name).items()}
    beside = folder / f".{name}.{secrets.token_hex(8)}.aside"
    try:
        for path, text in texts.items():
            _write(beside / path, text)
        beside.rename(root)  # refused where somebody else has put files there meanwhile
    except OSError as error:
        msg = f"{root} can't be written ({error.strerror}); choose another folder"
        raise UsdcoreError(msg) from None
    finally:
        shutil.rmtree(beside, ignore_errors=True)
    return [root / path for path in texts]


def _require_name(name: str) -> None:
    if not _NAME.fullmatch(name) or len(name) > _LONGEST:
        msg = (
            f"{brief(name)!r} can't name a package: use at most {_LONGEST} small letters, digits and single hyphens, "
            "with a letter first, as in my-method"
        )
        raise UsdcoreError(msg)
    module = _values(name)["module"]
    if keyword.iskeyword(module) or module in sys.stdlib_module_names or importlib.util.find_spec(module) is not None:
        msg = f"a module called {module!r} is there already (Python's own, or installed); choose another name"
        raise UsdcoreError(msg)
    from usdcore.hooks import registry

    if name in registry().names("strategy"):
        owner = registry().plugin("strategy", name).distribution
        msg = f"a strategy called {name!r} is registered already, by {owner}; choose another name"
        raise UsdcoreError(msg)


def _values(name: str) -> dict[str, str]:
    from usdcore import __version__

    camel = "".join(part.capitalize() for part in name.split("-"))
    return {
        "name": name,
        "distribution": name,
        "module": name.replace("-", "_"),
        "class": camel,
        "usdcore": __version__.partition("+")[0],
    }


def _files(name: str) -> dict[Path, Path]:
    """The template of each file, by its place in the package's folder."""
    found = {}
    for template in sorted(_TEMPLATES.rglob("*.template")):
        parts = template.relative_to(_TEMPLATES).with_suffix("").parts
        found[Path(*(_values(name)["module"] if part == "package" else part for part in parts))] = template
    return found


def _filled(text: str, values: Mapping[str, str]) -> str:
    return re.sub(r"\{\{(\w+)\}\}", lambda match: values[match[1]], text)


def _write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
