"""Attacks on weights that a recipe names (`model.weights`): torch files are pickles, safetensors of others have no
checksum of ours.
"""

from __future__ import annotations

import os
import pickle
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import nn

from usdcore.artifact import create, save
from usdcore.engine.weights import fill, read_weights
from usdcore.plans import Plan

from . import made
from .table import Table

torch_file = Table("A torch file given as `model.weights`")
safetensors = Table("A safetensors file given as `model.weights`")


class Runs:
    """Unpickling it runs a command, which leaves a file behind: the tests look for it."""

    def __init__(self, place: Path) -> None:
        self.place = place

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, (f"touch {self.place / 'pwned'}",)


class Evaluates(Runs):
    def __reduce__(self) -> tuple[Any, ...]:
        return eval, (f"open({str(self.place / 'pwned')!r}, 'w')",)


def read(place: Path, name: str = "w.pth") -> object:
    return read_weights(place / name, "model.weights")


def _pickled(wrap: Callable[[Path], object]) -> Callable[[Path], object]:
    def act(place: Path) -> object:
        with (place / "w.pth").open("wb") as file:
            pickle.dump(wrap(place), file)
        return read(place)

    return act


def _saved(wrap: Callable[[Path], object], **options: Any) -> Callable[[Path], object]:
    def act(place: Path) -> object:
        torch.save(wrap(place), place / "w.pth", **options)
        return read(place)

    return act


torch_file.add("a pickle that runs a command", _pickled(Runs))
torch_file.add("a torch archive that runs a command", _saved(lambda p: {"model": Runs(p)}))
torch_file.add("a torch archive that evaluates Python", _saved(lambda p: {"a": torch.ones(1), "b": Evaluates(p)}))
torch_file.add(
    "the same beside weights, in torch's old form",
    _saved(lambda p: {"a": torch.ones(1), "b": Runs(p)}, _use_new_zipfile_serialization=False),
)
torch_file.add("a whole pickled module", _saved(lambda _: nn.Linear(2, 2)))
torch_file.add("a list instead of tensors by name", _saved(lambda _: [torch.ones(1)]))
torch_file.add("numbers instead of tensors", _saved(lambda _: {"a": 1}))
torch_file.add("tensors whose names are no texts", _saved(lambda _: {1: torch.ones(1)}))
torch_file.add("a sparse tensor", _saved(lambda _: {"a": torch.eye(3).to_sparse()}))
torch_file.add("a tensor without data, on the meta device", _saved(lambda _: {"a": torch.ones(3, device="meta")}))


@torch_file("an archive that unpacks to a thousand times its size")
def _bomb(place: Path) -> None:
    torch.save({"a": torch.zeros(2_000_000)}, place / "plain.pth")
    with zipfile.ZipFile(place / "plain.pth") as plain, zipfile.ZipFile(place / "w.pth", "w") as packed:
        for part in plain.infolist():
            packed.writestr(part.filename, plain.read(part), zipfile.ZIP_DEFLATED)
    read(place)


@torch_file("a TorchScript archive")
def _script(place: Path) -> None:
    # Written by hand: what makes one a TorchScript archive are its constants.
    torch.save({"a": torch.ones(1)}, place / "plain.pth")
    with zipfile.ZipFile(place / "plain.pth") as plain, zipfile.ZipFile(place / "w.pth", "w") as packed:
        for part in plain.infolist():
            packed.writestr(part.filename, plain.read(part))
        packed.writestr("plain/constants.pkl", b"\x80\x02).")
    read(place)


def _content(content: bytes, name: str = "w.pth") -> Callable[[Path], object]:
    def act(place: Path) -> object:
        (place / name).write_bytes(content)
        return read(place, name)

    return act


torch_file.add("no torch file at all", _content(b"weights" * 99))
torch_file.add("empty", _content(b""))


@torch_file("cut off")
def _cut(place: Path) -> None:
    torch.save({"a": torch.ones(1000)}, place / "whole.pth")
    (place / "w.pth").write_bytes((place / "whole.pth").read_bytes()[:-500])
    read(place)


@torch_file("a pipe under its name, on which reading would wait for ever")
def _pipe(place: Path) -> None:
    os.mkfifo(place / "w.pth")
    read(place)


safetensors.add("claims 2 GB", _content((2**31).to_bytes(8, "little") + b"{}", "w.safetensors"))
safetensors.add("a pickle under its name", _content(b"\x80\x04cos\nsystem\n.", "w.safetensors"))
safetensors.add(
    "a tensor that lies outside the file",
    _content(made.raw({"a": {"dtype": "F32", "shape": [99], "data_offsets": [0, 396]}}, bytes(4)), "w.safetensors"),
)


@safetensors("a compressed model in place of a dense one")
def _compressed(place: Path) -> None:
    made.model_file(place).rename(place / "w.safetensors")
    read(place, "w.safetensors")


@safetensors("a model of ours with a bit flipped")
def _flipped(place: Path) -> None:
    base = made.plan().base
    assert base is not None
    save(create(base), Plan(base=base), place / "w.safetensors")
    content = (place / "w.safetensors").read_bytes()
    (place / "w.safetensors").write_bytes(made.flipped(content, 8 * len(content) - 9999))
    read(place, "w.safetensors")


@safetensors("whole numbers for weights")
def _whole_numbers(place: Path) -> None:
    save_file({"weight": torch.ones(2, 2).long(), "bias": torch.ones(2)}, place / "w.safetensors")
    fill(nn.Linear(2, 2), read_weights(place / "w.safetensors", "model.weights"), "model.weights: w.safetensors")


@safetensors("weights of another model")
def _other(place: Path) -> None:
    save_file({"weight": torch.ones(2, 3), "bias": torch.ones(2)}, place / "w.safetensors")
    fill(nn.Linear(2, 2), read_weights(place / "w.safetensors", "model.weights"), "model.weights: w.safetensors")


TABLES = (torch_file, safetensors)
