"""JSON from a file that anybody may have written: strict, and bounded before anything is built. Imports no torch."""

from __future__ import annotations

import json
import math
from typing import Any, NoReturn

from usdcore.errors import UsdcoreError

MAX_VALUES = 2_000_000
"""Values in one text: a plan of the largest model has some 10^5."""
MAX_DEPTH = 64


def parse_json(text: str | bytes, where: str) -> Any:
    """The value that `text` holds.

    Errors: no JSON, a key that is there twice, NaN or an infinity, deeper than `MAX_DEPTH`, more than `MAX_VALUES`
    values, a number too long to be one. `where` names the file in the message.
    """
    try:
        if isinstance(text, bytes):
            text = text.decode()
        if text.count(",") + text.count("[") + text.count("{") > MAX_VALUES:
            raise ValueError(f"more than {MAX_VALUES} values")
        value = json.loads(text, object_pairs_hook=_once, parse_float=_finite, parse_constant=_no_constant)
        _bound_depth(value)
    except RecursionError:
        reason = f"nested deeper than {MAX_DEPTH}"
    except ValueError as error:  # JSON's errors, those below, numbers of thousands of digits, text that is not UTF-8
        reason = str(error)
    else:
        return value
    msg = f"{where}: not the JSON that usdcore writes ({reason}); make or fetch the file again"
    raise UsdcoreError(msg)


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        raise ValueError("a key is there twice")
    return found


def _no_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is no number")


def _finite(digits: str) -> float:
    value = float(digits)
    if math.isinf(value):
        raise ValueError(f"{digits[:20]} is no number")
    return value


def _bound_depth(value: Any) -> None:
    """Level by level, so that a deep value can't exhaust the stack here."""
    level, depth = [value], 0
    while level:
        if depth > MAX_DEPTH:
            raise ValueError(f"nested deeper than {MAX_DEPTH}")
        inner: list[Any] = []
        for item in level:
            if isinstance(item, dict):
                inner.extend(v for v in item.values() if isinstance(v, (dict, list)))
            elif isinstance(item, list):
                inner.extend(v for v in item if isinstance(v, (dict, list)))
        level, depth = inner, depth + 1
