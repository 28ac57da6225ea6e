"""The built-in plugins are declared, installed and healthy."""

from __future__ import annotations

import tomllib
from importlib import metadata
from pathlib import Path

from usdcore.hooks import installed, registry

ROOT = Path(__file__).parents[2]
DECLARED: dict[str, str] = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["entry-points"]["usdcore"]


def test_every_folder_of_plugins_is_declared() -> None:
    folders = {path.parent.name for path in (ROOT / "plugins").glob("*/__init__.py")}
    assert folders == set(DECLARED.values()), "add it to [project.entry-points.usdcore] in pyproject.toml"


def test_what_is_installed_is_what_is_declared() -> None:
    points = [p for p in metadata.entry_points(group="usdcore") if p.dist is not None and p.dist.name == "usdcore"]
    assert {p.name: p.value for p in points} == DECLARED, "run 'pip install -e .' again: entry points are a snapshot"


def test_the_own_plugins_come_first_and_work() -> None:
    assert [candidate.distribution for candidate in installed()][: len(DECLARED)] == ["usdcore"] * len(DECLARED)
    failed = {r.name: r.error for r in registry().records() if r.distribution == "usdcore" and r.state == "failed"}
    assert failed == {}


def test_every_implementation_is_there() -> None:
    plugins = registry()
    for record in plugins.records():
        for entry in record.entries:
            found = plugins.load(entry.kind, entry.name)
            assert callable(found) if entry.kind == "backbone" else isinstance(found, type)
