"""Feed-forward units: labels that one set of projections makes and another reads, and that are nothing else."""

from __future__ import annotations

from itertools import pairwise
from typing import TYPE_CHECKING

import networkx as nx
import numpy as np

from usdcore.units.drafts import Draft, UnitDraft
from usdcore.units.layers import IntArray

if TYPE_CHECKING:
    from usdcore.units.labelling import Labelling


def ffn_drafts(flow: Labelling, component: IntArray) -> list[UnitDraft]:
    """One unit with the group hidden for each set of projections that hidden labels connect, in order of execution."""
    free = _free(flow, component)
    maker_of = np.full(flow.num_labels, -1)
    for share in flow.shares:
        fresh = share.labels[(share.labels >= 0) & (maker_of[share.labels] < 0)]
        maker_of[fresh] = share.op  # an op that makes labels comes before every op that reads them
    projections: nx.Graph[int] = nx.Graph()
    readers: dict[int, list[IntArray]] = {}
    for use in flow.uses:
        labels = use.labels[free[use.labels]]
        if use.kind == "reads" and len(labels):
            readers.setdefault(use.op, []).append(labels)
            projections.add_edges_from((use.op, int(maker)) for maker in np.unique(maker_of[labels]))
    for a, b in flow.ties:
        tied = free[a] & free[b]
        makers = np.unique(np.concatenate([maker_of[a[tied]], maker_of[b[tied]]]))
        projections.add_edges_from(pairwise(int(m) for m in makers))
    drafts = []
    for ops in sorted(nx.connected_components(projections), key=min):
        read = [labels for op in sorted(ops) for labels in readers.get(op, [])]
        if read:
            drafts.append(_unit(component, np.concatenate(read)))
    return drafts


def _free(flow: Labelling, component: IntArray) -> np.typing.NDArray[np.bool_]:
    """Labels that may be hidden: not in a stream, not shown by the output, not in an attention core."""
    taken = [t.labels for t in flow.taints if t.kind in ("stream", "output")]
    taken += [core.involved for core in flow.cores]
    free = np.ones(flow.num_labels, dtype=bool)
    for labels in taken:
        free[component[labels]] = False
    for labels, _ in flow.coarse:
        free[labels] = False
    return free[component]


def _unit(component: IntArray, read: IntArray) -> UnitDraft:
    ids = np.unique(component[read])
    entry_of = np.full(len(component), -1)
    entry_of[ids] = np.arange(len(ids))
    return UnitDraft([Draft("hidden", len(ids), entry_of[component])])
