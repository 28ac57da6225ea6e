"""Files that are either the old ones or the new ones, never half of either. Importing this imports no torch."""

from __future__ import annotations

import os
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path

    from torch import Tensor


def write_atomic(path: Path, content: bytes) -> Path:
    """Write aside in the same folder, then replace `path` in one step. Missing folders are made."""
    with _aside(path) as aside:
        aside.write_bytes(content)
    return path


def save_tensors(tensors: Mapping[str, Tensor], path: Path, metadata: dict[str, str]) -> None:
    """The same for a safetensors file, with the permissions that any other new file would have."""
    from safetensors.torch import save_file

    with _aside(path) as aside:
        save_file(dict(tensors), aside, metadata=metadata)
        mask = os.umask(0)
        os.umask(mask)
        aside.chmod(0o666 & ~mask)


@contextmanager
def _aside(path: Path) -> Iterator[Path]:
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.with_name(f".{path.name}.{os.getpid()}.aside")
    try:
        yield aside
        aside.replace(path)
    finally:
        aside.unlink(missing_ok=True)
