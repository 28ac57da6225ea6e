"""Our safetensors files: tensors, one JSON text in the header, a format version, and two checksums. No pickle.

The header's checksum covers every name, shape and text in it, the other one the tensors' bytes, so a bit that flipped
anywhere is seen before anything is used. They guard against accidents; whoever wants to can write a file with right
checksums, so nothing that a header claims is believed either: every size is checked against the file before a tensor is
made. The tensors are read, not mapped: what was checked is what is used, whatever happens to the file later.
"""

from __future__ import annotations

import hashlib
import json
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, BinaryIO

import torch

from usdcore.errors import UsdcoreError, brief
from usdcore.files import aside, open_ordinary
from usdcore.jsontext import parse_json

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from torch import Tensor

FORMAT = 2
"""Of this version of usdcore; 1 had no checksums."""
MAX_HEADER = 2**24
"""Bytes. The plan of a model with 40 blocks of 6144 neurons, pruned three times, takes 5 MB."""

KIND, VERSION = "usdcore.kind", "usdcore.format"
DATA_SUM, HEADER_SUM = "usdcore.data-sha256", "usdcore.header-sha256"
TEXT = {"model": "usdcore.plan", "checkpoint": "usdcore.state"}
"""Under which key each kind of file has its JSON."""

_DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}
_NAMES = {dtype: name for name, dtype in _DTYPES.items()}


class DamagedError(UsdcoreError):
    """A file of ours that was changed since it was written, or was never whole."""


@dataclass(frozen=True)
class Entry:
    """One tensor as the header states it; `start` counts in bytes from the end of the header."""

    dtype: torch.dtype
    shape: tuple[int, ...]
    start: int

    @property
    def numel(self) -> int:
        """Elements."""
        return math.prod(self.shape)

    @property
    def size(self) -> int:
        """Bytes."""
        return self.numel * self.dtype.itemsize


@dataclass(frozen=True)
class Header:
    """A header that fits its file; the tensors' own checksum is for `read_tensors`. `base` is where the data begins."""

    text: str
    entries: dict[str, Entry]
    data_sum: str
    base: int


def write_tensors(path: Path, kind: str, text: str, tensors: Mapping[str, Tensor], keep: Path | None = None) -> None:
    """Write one file, aside and then renamed. `kind` says what it is of, `text` is its JSON; what was at `path` goes to
    `keep`, where that is given.

    Errors: `UsdcoreError` for a disk or folder that can't take it, and for a text too long to be read again.
    """
    flat = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    for name, tensor in flat.items():
        if name == "__metadata__" or tensor.dtype not in _NAMES:
            msg = f"{path}: a tensor named {brief(name)!r} of {tensor.dtype} can't be written; convert or rename it"
            raise UsdcoreError(msg)
    # Wide elements first: whatever maps the file then finds every tensor aligned.
    order = sorted(flat, key=lambda name: (-flat[name].dtype.itemsize, name))
    entries, start = {}, 0
    for name in order:
        entries[name] = Entry(flat[name].dtype, tuple(flat[name].shape), start)
        start += entries[name].size
    metadata = {KIND: kind, VERSION: str(FORMAT), TEXT[kind]: text, DATA_SUM: _data_sum(flat)}
    metadata[HEADER_SUM] = _header_sum(metadata, entries)
    stated = {name: _stated(entry) for name, entry in entries.items()}
    header = json.dumps({"__metadata__": metadata, **stated}).encode()
    header += b" " * (-len(header) % 8)
    if len(header) > MAX_HEADER:
        msg = f"{path}: what goes with the tensors takes {len(header)} bytes, at most {MAX_HEADER} can be read again"
        raise UsdcoreError(msg)
    with aside(path, keep) as file:
        file.write(len(header).to_bytes(8, "little") + header)
        for name in order:
            file.write(_bytes_of(flat[name]))


def read_header(path: Path, kind: str) -> Header:
    """The header of a file that `write_tensors` wrote, checked.

    Errors: `DamagedError` for one that was changed; `UsdcoreError` for no such file, something else than `kind`, and
    another format, which it names.
    """
    with open_ordinary(path) as file:
        return _header(path, file, kind)


def read_tensors(path: Path, kind: str) -> tuple[Header, dict[str, Tensor]]:
    """Header and tensors (on the CPU), both checked. Errors: those of `read_header`."""
    with open_ordinary(path) as file:
        header = _header(path, file, kind)
        found = {name: _read(path, file, header.base, entry) for name, entry in header.entries.items()}
    if _data_sum(found) != header.data_sum:
        raise _damaged(path, "its tensors do not have their checksum")
    return header, found


def _header(path: Path, file: BinaryIO, kind: str) -> Header:
    total = file.seek(0, 2)
    file.seek(0)
    length = int.from_bytes(file.read(8), "little")
    if total < 10 or length > total - 8:
        raise _damaged(path, "it is not a safetensors file, or was cut off")
    if length > MAX_HEADER:
        raise _damaged(path, f"its header claims {length} bytes, more than the {MAX_HEADER} of any that is ours")
    try:
        stated = parse_json(file.read(length), str(path))
    except UsdcoreError:
        raise _damaged(path, "its header is not JSON as usdcore writes it") from None
    metadata = stated.pop("__metadata__", {}) if isinstance(stated, dict) else None
    if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
        raise _damaged(path, "its header is not that of a safetensors file")
    _check_kind(path, metadata, kind)
    entries = {name: _entry(path, name, value) for name, value in stated.items()}
    _check_places(path, entries, total - 8 - length)
    if metadata.get(HEADER_SUM) != _header_sum(metadata, entries):
        raise _damaged(path, "its header does not have its checksum")
    if metadata.get(VERSION) != str(FORMAT):
        raise UsdcoreError(_other_format(path, metadata.get(VERSION, "")))
    if metadata.get(KIND) != kind:
        msg = f"{path}: a {brief(metadata.get(KIND, ''))} of usdcore, not a {kind}; name the {kind}'s file"
        raise UsdcoreError(msg)
    return Header(metadata.get(TEXT[kind], ""), entries, metadata.get(DATA_SUM, ""), 8 + length)


def _check_kind(path: Path, metadata: dict[str, str], kind: str) -> None:
    """Files that never were of this format."""
    if any(key in metadata for key in (KIND, VERSION, DATA_SUM, HEADER_SUM)):
        return
    if any(key in metadata for key in TEXT.values()):
        raise UsdcoreError(_other_format(path, "1"))
    msg = f"{path}: not a {kind} that usdcore wrote (its header says nothing of one); name another file"
    raise UsdcoreError(msg)


def _other_format(path: Path, version: str) -> str:
    is_older = version.isdecimal() and len(version) < 9 and int(version) < FORMAT
    todo = "make it anew with this version" if is_older else "install a newer usdcore"
    return f"{path}: written in format {brief(version)!r}, and this usdcore reads format {FORMAT} only; {todo}"


def _entry(path: Path, name: str, stated: Any) -> Entry:
    if not isinstance(stated, dict) or set(stated) != {"dtype", "shape", "data_offsets"}:
        raise _damaged(path, f"its header does not say what {brief(name)!r} is")
    shape, offsets, dtype = stated["shape"], stated["data_offsets"], stated["dtype"]
    if not _counts(shape) or len(shape) > 16 or not _counts(offsets) or len(offsets) != 2 or _volume(shape) >= 2**48:
        raise _damaged(path, f"its header gives {brief(name)!r} no shape or no place")
    if not isinstance(dtype, str) or dtype not in _DTYPES:
        raise _damaged(path, f"{brief(name)!r} is of the type {brief(str(dtype))}, which usdcore never writes")
    entry = Entry(_DTYPES[dtype], tuple(shape), offsets[0])
    if entry.size != offsets[1] - offsets[0]:
        raise _damaged(path, f"{brief(name)!r} states {entry.size} bytes and has {offsets[1] - offsets[0]}")
    return entry


def _counts(value: Any) -> bool:
    """Whether it is a list of sizes; a bool is none, and 2^48 bytes are in no file."""
    return isinstance(value, list) and all(type(item) is int and 0 <= item < 2**48 for item in value)


def _volume(shape: list[int]) -> int:
    """Elements, an axis of length 0 taken as 1: torch counts its strides so."""
    return math.prod(max(side, 1) for side in shape)


def _check_places(path: Path, entries: Mapping[str, Entry], length: int) -> None:
    """Every byte of the data belongs to exactly one tensor."""
    end = 0
    for name, entry in sorted(entries.items(), key=lambda item: (item[1].start, item[1].size)):
        if entry.start != end:
            raise _damaged(path, f"{brief(name)!r} overlaps another tensor, or leaves a gap")
        end += entry.size
    if end != length:
        raise _damaged(path, f"its tensors take {end} bytes, the file holds {length}")


def _read(path: Path, file: BinaryIO, base: int, entry: Entry) -> Tensor:
    out = torch.empty(entry.shape, dtype=entry.dtype, device="cpu")
    file.seek(base + entry.start)
    view = memoryview(_bytes_of(out))
    while len(view):
        count = file.readinto(view)  # type: ignore[attr-defined]
        if not count:
            raise _damaged(path, "it was cut off while it was read")
        view = view[count:]
    return out


def _bytes_of(tensor: Tensor) -> memoryview:
    """The memory of a contiguous tensor on the CPU."""
    flat: memoryview = tensor.reshape(-1).view(torch.uint8).numpy().data
    return flat


def _stated(entry: Entry) -> dict[str, Any]:
    offsets = [entry.start, entry.start + entry.size]
    return {"dtype": _NAMES[entry.dtype], "shape": list(entry.shape), "data_offsets": offsets}


def _data_sum(tensors: Mapping[str, Tensor]) -> str:
    digest = hashlib.sha256()
    for name in sorted(tensors):
        digest.update(_bytes_of(tensors[name]))
    return digest.hexdigest()


def _header_sum(metadata: Mapping[str, str], entries: Mapping[str, Entry]) -> str:
    """Does not depend on the order or the places, so that another program may write the file again."""
    texts = sorted((key, value) for key, value in metadata.items() if key != HEADER_SUM)
    stated = [(name, _NAMES[entry.dtype], entry.shape) for name, entry in sorted(entries.items())]
    return hashlib.sha256(json.dumps([texts, stated]).encode()).hexdigest()


def _damaged(path: Path, why: str) -> DamagedError:
    return DamagedError(f"{path}: damaged: {why}. Fetch or make it again")
