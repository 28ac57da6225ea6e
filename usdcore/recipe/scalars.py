"""YAML's plain scalars by the YAML 1.2 core schema: `no` is a string, `1e-3` is a number; and back."""

from __future__ import annotations

import math
import re
from typing import Any

_NULL = {"", "~", "null", "Null", "NULL"}
_BOOL = {"true": True, "True": True, "TRUE": True, "false": False, "False": False, "FALSE": False}
_INT = re.compile(r"[-+]?[0-9]+|0o[0-7]+|0x[0-9a-fA-F]+")
_FLOAT = re.compile(r"[-+]?(?:\.[0-9]+|[0-9]+(?:\.[0-9]*)?)(?:[eE][-+]?[0-9]+)?")
_INFINITE = re.compile(r"([-+]?)\.(?:inf|Inf|INF)")
_NAN = {".nan", ".NaN", ".NAN"}
_WORD = re.compile(r"[A-Za-z_./][A-Za-z0-9_./+-]*")
_LONGEST_INT = 40
"""Digits; longer ones are no settings, and Python refuses to read very long ones."""


def read_scalar(text: str) -> str | int | float | bool | None:
    """The value of an unquoted scalar."""
    if text in _NULL:
        return None
    if text in _BOOL:
        return _BOOL[text]
    if _INT.fullmatch(text) and len(text) <= _LONGEST_INT:
        return int(text, 0) if text.startswith(("0o", "0x")) else int(text)
    if _FLOAT.fullmatch(text):
        return float(text)
    if infinite := _INFINITE.fullmatch(text):
        return -math.inf if infinite[1] == "-" else math.inf
    return math.nan if text in _NAN else text


def write_scalar(value: Any) -> str:
    """YAML that reads as the same value again; strings are quoted only where they must be."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, float):
        if math.isfinite(value):
            return repr(value)
        return ".nan" if math.isnan(value) else ".inf" if value > 0 else "-.inf"
    if isinstance(value, int):
        return str(value)
    text = str(value)
    if _WORD.fullmatch(text) and isinstance(read_scalar(text), str):
        return text
    return '"' + "".join(_quoted(c) for c in text) + '"'


def _quoted(character: str) -> str:
    if character in '"\\':
        return "\\" + character
    return character if character.isprintable() else f"\\U{ord(character):08x}"
