"""Shares by glob patterns of names."""

from __future__ import annotations

from fnmatch import fnmatchcase
from typing import TYPE_CHECKING

from usdcore.errors import UsdcoreError, brief, nearest

if TYPE_CHECKING:
    from collections.abc import Mapping


def shares(ratios: Mapping[str, float], names: Mapping[str, tuple[str, ...]], where: str) -> dict[str, float]:
    """The share that a pattern states for each target; targets that no pattern matches are left out.

    Args:
        ratios: share by pattern (`*`, `?`, `[...]`, as in file names).
        names: by target (a group, a layer) the names that a pattern may match it by.
        where: what to call the option in messages.

    Errors: a pattern that matches nothing, with the nearest name; a target that two patterns match.
    """
    found: dict[str, tuple[str, float]] = {}
    for pattern, share in ratios.items():
        matched = [target for target, own in names.items() if any(fnmatchcase(name, pattern) for name in own)]
        if not matched:
            known = {name for own in names.values() for name in own}
            msg = f"{where}: {brief(pattern)!r} matches nothing that this strategy may prune; {nearest(pattern, known)}"
            raise UsdcoreError(msg)
        for target in matched:
            if target in found:
                first = brief(found[target][0])
                msg = (
                    f"{where}: {first!r} and {brief(pattern)!r} both match {target}; state one share for it, with "
                    f"patterns that do not overlap"
                )
                raise UsdcoreError(msg)
            found[target] = (pattern, share)
    return {target: share for target, (_, share) in found.items()}
