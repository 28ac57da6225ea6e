"""Where each value of a resolved recipe comes from."""

from __future__ import annotations

from typing import TYPE_CHECKING

from usdcore.recipe.tree import find

if TYPE_CHECKING:
    from usdcore.recipe.loading import LoadedRecipe
    from usdcore.recipe.tree import Path

DEFAULT = "default"


def origin_of(loaded: LoadedRecipe, path: Path) -> str:
    """File, line and column of the value at `path`, the override that set it, or "default"."""
    written = _written(loaded, path)
    if written is not None:
        return written
    match path:
        case ("phases", int(i), "strategies", int(j), *rest):
            # What a later mention of a strategy leaves out, it has from an earlier one.
            use = loaded.recipe.phases[i].strategies[j].use
            for k in range(i - 1, -1, -1):
                names = [strategy.use for strategy in loaded.recipe.phases[k].strategies]
                if use in names:
                    earlier = _written(loaded, ("phases", k, "strategies", names.index(use), *rest))
                    if earlier is not None:
                        return earlier
    return DEFAULT


def _written(loaded: LoadedRecipe, path: Path) -> str | None:
    node = find(loaded.written, path)
    if node is not None:
        return str(node.origin)
    # A bare name stands for a mapping with nothing but that name.
    parent = find(loaded.written, path[:-1]) if path and path[-1] in ("use", "source") else None
    return str(parent.origin) if parent is not None and isinstance(parent.value, str) else None
