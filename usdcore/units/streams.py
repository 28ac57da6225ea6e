"""The residual streams of a model, from a label pass that goes on through residual adds: a stream's channels are then
tied to all that write them, and known to all that read them.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from usdcore.units.drafts import Draft, assign
from usdcore.units.labels import mixes
from usdcore.units.layers import axes, compact

if TYPE_CHECKING:
    from collections.abc import Iterable

    from usdcore.units.drafts import Components
    from usdcore.units.graph import Residual
    from usdcore.units.labelling import Labelling
    from usdcore.units.layers import IntArray
    from usdcore.units.tally import Tally
    from usdcore.units.trace import Op


@dataclass(slots=True, eq=False)
class Stream:
    """A stream's channels, the module that adds the first branch to it, and the modules that normalise over it."""

    draft: Draft
    place: str
    norms: list[str] = field(default_factory=list)


def find_streams(flow: Labelling, components: Components, residuals: Iterable[Residual]) -> list[Stream]:
    """The streams in order of execution.

    A stream's channels are labelled on what a branch is added to. What only the branch has somewhere (tokens that the
    linear layer of a mixer makes, and a patch embedding does not) can't be cut out of the sum.
    """
    places: dict[bytes, str] = {}
    only_added: set[bytes] = set()
    for residual in sorted(residuals, key=lambda r: r.op):
        if any(mixes(flow, flow.trace.ops[i]) for i in residual.ops):
            own, added = (_channels(flow, components.of, v) for v in (residual.skip, residual.delta))
            only_added |= added - own
            for key in sorted(own - places.keys()):
                places[key] = flow.trace.path(flow.trace.ops[residual.op])
    streams = []
    for key, place in places.items():
        if key not in only_added:
            ids = np.frombuffer(key, dtype=np.int64)
            labels, entries, is_clean = assign(components, [ids[:, None]])
            streams.append(Stream(Draft("width", len(ids), labels, entries), place))
            if not is_clean:
                streams[-1].draft.reasons.append("some of its channels are tied to each other, so none goes alone")
    return streams


def explain(tally: Tally, streams: list[Stream]) -> None:
    """Add to each stream why it can't be cut, and which modules normalise over it."""
    flow = tally.flow
    for taint in flow.taints:
        for group in tally.groups_of(tally.label_entry[taint.labels]):
            streams[group].draft.reasons.append(taint.reason)
    for norm in flow.norms:
        op = flow.trace.ops[norm.op]
        for group in tally.groups_of(np.where(norm.labels >= 0, tally.label_entry[norm.labels], -1)):
            if _is_renewed(op):
                streams[group].norms.append(flow.trace.path(op))
            else:
                streams[group].draft.reasons.append(f"its entries are normalised together by {flow.where(op)}")


def _is_renewed(op: Op) -> bool:
    """Whether a norm over fewer channels is the same norm of these; one over groups of channels would mix others."""
    return op.name in ("layer_norm", "rms_norm") or (op.name == "group_norm" and op.args[1] == 1)


def _channels(flow: Labelling, component: IntArray, value: int) -> set[bytes]:
    """The labelled axes of a value, each as the bytes of its positions' components."""
    found = set()
    for layer in flow.labels.get(value, ()):
        labels = compact(layer).ravel()
        if len(axes(layer)) == 1 and (labels >= 0).all():
            found.add(component[labels].tobytes())
    return found
