"""A small world of plugins, so that recipes can be tested without the real ones."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, Literal

import pytest
from hypothesis import settings
from pydantic import Field, model_validator

from usdcore.hooks import Candidate, Register, build_registry, hookimpl, using
from usdcore.recipe import DataConfig, PluginConfig, Use

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

settings.register_profile("recipe", deadline=None)  # a busy machine is no failure
settings.load_profile("recipe")

Split = Use["split"]


class ToyData(DataConfig):
    """Images that are not there."""

    root: str | None = None
    labels: Path | None = None


class Halves(PluginConfig):
    """A split."""

    least: int = Field(ge=1)
    """Smallest part."""


class Prune(PluginConfig):
    """A strategy with required, nested, mutable and other options."""

    ratio: float = Field(gt=0, lt=1)
    """Share to keep."""
    heads: bool = True
    noise: tuple[float, float] = (1.0, 0.0)
    split: Literal["none"] | Split = "none"
    splits: list[Split] = Field(default_factory=list)
    tau: float = Field(default=1.0, json_schema_extra={"mutable": True})
    teacher: Path | None = None

    @model_validator(mode="after")
    def _sane(self) -> Prune:
        if not self.heads and self.split == "none":
            msg = "nothing to prune: set heads or split"
            raise ValueError(msg)
        return self


class Plain(PluginConfig):
    """A strategy without options."""


@hookimpl
def usdcore_register(register: Register) -> None:
    register.data_source(name="toy", config=ToyData, implementation="a:B", summary="s")
    register.split(name="halves", config=Halves, implementation="a:B", summary="s")
    register.strategy(name="prune", config=Prune, implementation="a:B", summary="s")
    register.strategy(name="distill", config=Plain, implementation="a:B", summary="s")


def _broken() -> object:
    msg = "No module named 'absent'"
    raise ModuleNotFoundError(msg)


@pytest.fixture(autouse=True)
def _plugins() -> Iterator[None]:
    toys = SimpleNamespace(__name__="toys", usdcore_register=usdcore_register)
    with using(build_registry(toys, candidates=[Candidate("broken", "broken-dist", "2", _broken)])):
        yield


BASE = """\
name: toy
model: {name: vit, num_classes: 10}
data: {source: toy, input_size: 32, batch_size: 8}
budget: {macs: 0.5, batch_size: 8}
seed: 0
train: {lr: 1e-3}
phases:
  - name: search
    epochs: 3
    strategies:
      - {use: prune, ratio: 0.5}
"""


@pytest.fixture
def write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., str]:
    """Writes a file into an empty current directory and returns its name: ``write(TEXT, "a.yaml")``."""
    monkeypatch.chdir(tmp_path)

    def put(text: str | bytes, name: str = "x.yaml") -> str:
        path = Path(name)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(text.encode() if isinstance(text, str) else text)
        return name

    return put


@pytest.fixture
def base(write: Callable[..., str]) -> str:
    """A good recipe's file."""
    return write(BASE, "base.yaml")


@pytest.fixture
def as_data() -> dict[str, Any]:
    """A good recipe as Python values."""
    return {
        "name": "toy",
        "model": {"name": "vit", "num_classes": 10},
        "data": {"source": "toy", "input_size": 32, "batch_size": 8},
        "budget": {"macs": 0.5, "batch_size": 8},
        "seed": 0,
        "train": {"lr": 1e-3},
        "phases": [{"name": "search", "epochs": 3, "strategies": [{"use": "prune", "ratio": 0.5}]}],
    }
