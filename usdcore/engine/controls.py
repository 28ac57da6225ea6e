"""Controls: what the compressed model must be compared with. `narrow` is the dense architecture made narrower."""

from __future__ import annotations

from typing import TYPE_CHECKING

from usdcore.costs import Tree
from usdcore.errors import UsdcoreError
from usdcore.plans import Keep, Plan

if TYPE_CHECKING:
    from usdcore.units.types import Group, Units

NARROW = (
    "the same architecture with equally many heads and hidden neurons removed in every layer before training: "
    "no search, no gates, fresh weights, the executed MACs of the compressed model, as many epochs as its whole run"
)


def narrow_plan(units: Units, target_macs: float) -> Plan:
    """A uniform plan of at most `target_macs` per image, exact to one hidden neuron per model.

    Every layer keeps the same number of heads, and the same number of hidden neurons but for the remainder, which the
    first layers get. Errors: a target below one head and one neuron per layer.
    """
    tree = Tree(units)
    heads = [g for g in units.groups.values() if g.kind == "heads" and g.reason is None]
    hidden = [g for g in units.groups.values() if g.kind == "hidden" and g.reason is None]
    best: tuple[float, dict[str, int]] | None = None
    for num_heads in range(1, max((g.size for g in heads), default=1) + 1):
        kept = {g.name: min(num_heads, g.size) for g in heads}
        spare = target_macs - tree.decided(kept | {g.name: 0 for g in hidden})
        counts = _spread(hidden, spare)
        if counts is None:
            continue
        share = sum(counts.values()) / max(1, sum(g.size for g in hidden))
        head_share = sum(kept.values()) / max(1, sum(g.size for g in heads))
        if best is None or abs(share - head_share) < best[0]:
            best = abs(share - head_share), kept | counts
    if best is None:
        share = target_macs / tree.total
        msg = f"no uniformly narrow model has as few as {share:.1%} of the dense MACs: leave the control out"
        raise UsdcoreError(msg)
    sizes = {g.name: g.size for g in (*heads, *hidden)}
    return Plan().then(
        Keep(group=name, indices=tuple(range(count))) for name, count in best[1].items() if count < sizes[name]
    )


def _spread(groups: list[Group], spare: float) -> dict[str, int] | None:
    """As many entries as `spare` MACs buy, spread evenly; None if it does not buy one each."""
    if not groups:
        return {} if spare >= 0 else None
    counts = dict.fromkeys((g.name for g in groups), 0)
    each = {g.name: g.macs_per_entry for g in groups}
    rounds = int(spare // sum(each.values()))
    for group in groups:
        counts[group.name] = min(group.size, rounds)
        spare -= counts[group.name] * each[group.name]
    for group in groups:
        if counts[group.name] < group.size and spare >= each[group.name]:
            counts[group.name] += 1
            spare -= each[group.name]
    return counts if min(counts.values()) >= 1 else None
