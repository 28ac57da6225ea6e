"""The broken plugins, installed as distributions of their own for the length of a module."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from usdcore.hooks import build_registry, installed, using

HERE = Path(__file__).parent / "broken"


@pytest.fixture(scope="module")
def broken_plugins(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    tmp_path = tmp_path_factory.mktemp("installed")
    for module in ("broken_plugins", "broken_heavy"):
        info = tmp_path / f"{module}-0.1.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {module}\nVersion: 0.1\n")
        (info / "entry_points.txt").write_text(f"[usdcore]\n{module} = {module}\n")
    with pytest.MonkeyPatch.context() as patch:
        for path in (str(tmp_path), str(HERE)):
            patch.syspath_prepend(path)
        with using(build_registry(candidates=installed())):
            yield
    for name in [name for name in sys.modules if name.split(".")[0] in ("broken_plugins", "broken_heavy")]:
        del sys.modules[name]
