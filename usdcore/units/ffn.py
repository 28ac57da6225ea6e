"""Feed-forward units: labels that one set of projections makes and another reads, and that are nothing else."""

from __future__ import annotations

from itertools import pairwise
from typing import TYPE_CHECKING

import networkx as nx
import numpy as np

from usdcore.units.drafts import Draft, UnitDraft, assign
from usdcore.units.layers import distinct

if TYPE_CHECKING:
    from usdcore.units.drafts import Components
    from usdcore.units.labelling import Labelling
    from usdcore.units.layers import IntArray

    BoolArray = np.typing.NDArray[np.bool_]


def ffn_drafts(flow: Labelling, components: Components) -> list[UnitDraft]:
    """One unit with the group hidden for each set of projections that hidden labels connect, in order of execution."""
    free = _free(flow, components.of)
    maker_of = np.full(flow.num_labels, -1)
    for share in flow.shares:
        fresh = share.labels[(share.labels >= 0) & (maker_of[share.labels] < 0)]
        maker_of[fresh] = share.op  # an op that makes labels comes before every op that reads them
    projections: nx.Graph[tuple[str, int]] = nx.Graph()  # an op reads the labels of one group and makes another's
    readers: dict[int, list[IntArray]] = {}
    for use in flow.uses:
        labels = use.labels[free[use.labels]]
        if use.kind == "reads" and len(labels):
            readers.setdefault(use.op, []).append(labels)
            makers = distinct(maker_of[labels])
            projections.add_edges_from((("reads", use.op), ("makes", int(maker))) for maker in makers)
    for a, b in flow.ties:
        tied = (a >= 0) & (b >= 0) & free[a] & free[b]
        makers = distinct(np.concatenate([maker_of[a[tied]], maker_of[b[tied]]]))
        projections.add_edges_from(pairwise(("makes", int(maker)) for maker in makers))
    drafts = []
    for nodes in sorted(nx.connected_components(projections), key=lambda nodes: min(op for _, op in nodes)):
        read = [labels for kind, op in sorted(nodes) if kind == "reads" for labels in readers[op]]
        if read:
            drafts.append(_unit(components, np.concatenate(read)))
    return [*drafts, *_lost(flow, components, maker_of, free)]


def _lost(flow: Labelling, components: Components, maker_of: IntArray, free: BoolArray) -> list[UnitDraft]:
    """Labels that an op without a rule swallowed, so that no reader is known: not to be passed over in silence."""
    is_lost = np.zeros(flow.num_labels, dtype=bool)
    for taint in flow.taints:
        is_lost[taint.labels] |= taint.kind == "unknown"
    is_read = np.zeros(flow.num_labels, dtype=bool)
    for use in flow.uses:
        if use.kind == "reads":
            is_read[components.of[use.labels]] = True
    lost = np.flatnonzero(is_lost & free & ~is_read[components.of])
    makers = [
        op for op in np.unique(maker_of[lost]) if op >= 0 and flow.trace.values[flow.trace.ops[op].outputs[0]].is_data
    ]
    return [_unit(components, lost[maker_of[lost] == op]) for op in makers]


def _free(flow: Labelling, component: IntArray) -> BoolArray:
    """Labels that may be hidden: not in a stream, not shown by the output, not in an attention core."""
    taken = [t.labels for t in flow.taints if t.kind in ("stream", "output")]
    taken += [core.involved for core in flow.cores]
    taken += flow.probabilities.values()
    free = np.ones(flow.num_labels, dtype=bool)
    for labels in taken:
        free[component[labels]] = False
    for labels, _ in flow.coarse:
        free[labels] = False
    return free[component]


def _unit(components: Components, read: IntArray) -> UnitDraft:
    ids = distinct(components.of[read])
    labels, entries, _ = assign(components, [ids[:, None]])
    return UnitDraft([Draft("hidden", len(ids), labels, entries)])
