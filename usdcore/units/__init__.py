"""Find what can be removed or skipped in a Vision Transformer, from its dataflow alone.

How it works, in the order of the files:

1. `metacopy`, `plaincopy`, `sizes`, `modes`, `host`, `places`, `record`, `trace`: one forward of a weightless copy is
   recorded, op by op, each with its place in the host's code.
2. `macs`, `graph`: what each op costs, what depends on what, and where the residual adds are.
3. `labelling`, `layers`, `labels`, `rules`: every output channel of every projection gets a number, and the numbers
   travel with the activations, so that each parameter entry learns which channels it makes or reads.
4. `attention`, `ffn`: channels that meet in an attention core are heads; channels between two projections are hidden.
5. `flat`, `tally`, `separate`, `removal`, `follow`, `masks`, `build`: the parameter entries, costs, attributes and
   places of factors of each group, and why it can't be pruned; `slots`, `writers` for the dims inside heads.
6. `branches`, `owned`: the expression that adds each residual branch, what belongs to it alone, and the blocks.
7. `streams`, `width`, `width_costs`, `terms`: the channels of the residual streams, on first use.

`find_units` is imported on first use: the plain types in `types` need no torch.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from usdcore.units.find import find_units

__all__ = ["find_units"]


def __getattr__(name: str) -> Any:
    """Import `find_units` when it is asked for."""
    if name == "find_units":
        from usdcore.units.find import find_units

        return find_units
    msg = f"module {__name__!r} has no attribute {name!r}"
    raise AttributeError(msg)
