"""The counts s and r of a model, and the state that both solvers share: duals y and p, sorted norms, the entries kept.

All kinds have the same form: a table of rows, a real count for each row, a dual for each row. Every number stays on the
device.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from usdcore_uvc.norms import Least, prox_factor, scores

if TYPE_CHECKING:
    from usdcore_uvc.layout import Layout, Table


STATE = ("value", "dual", "mass")


class Counts:
    """Of one kind: `value` [R] in [0, size - 1] (at least one entry of a row stays), `dual` [R] >= 0; `mass` [R] is
    the squared norm of the whole row when the phase began.
    """

    def __init__(self, table: Table, dual: float) -> None:
        self.table = table
        self.value = torch.zeros_like(table.sizes)
        self.dual = torch.full_like(table.sizes, dual)
        self.limit = table.sizes - 1
        self.least = Least(table.norms())
        self.mass = self.least.total(table.sizes)

    @property
    def number(self) -> Tensor:
        """How many entries of each row go: the count rounded up, [R]."""
        return self.value.ceil()

    def look(self) -> None:
        """Compute this step's norms."""
        self.least = Least(self.table.norms())

    def keep(self) -> Tensor:
        """1 for each entry that stays, else 0: [entries]."""
        return self.table.flat((~self.least.chosen(self.number)).to(self.value.dtype))

    def shrink(self, weight: Tensor) -> None:
        """The proximal step with `weight` [R] on the columns of the entries that are to go."""
        self.table.columns.scale(self.table.flat(prox_factor(self.least.chosen(self.number), weight)))

    def set(self, value: Tensor) -> None:
        """Set the counts, within their range."""
        self.value = torch.minimum(value.clamp(min=0), self.limit)

    def row_means(self, entries: Tensor) -> Tensor:
        """Mean over each row of values [entries], [R]."""
        return self.table.pad(entries, 0.0).sum(dim=1) / self.table.sizes


class AllCounts:
    """The counts of every kind of a layout."""

    def __init__(self, layout: Layout, dual: float) -> None:
        self.layout = layout
        self.kinds = {kind: Counts(table, dual) for kind, table in layout.tables.items()}

    def look(self) -> None:
        """Compute this step's norms of all kinds."""
        for counts in self.kinds.values():
            counts.look()

    def keep(self) -> Tensor:
        """What stays, over the entries of all groups in the order of `Layout.sizes`."""
        parts = [counts.keep() for counts in self.kinds.values()]
        return torch.cat(parts) if parts else torch.zeros(0)

    def split(self, entries: Tensor) -> dict[str, Tensor]:
        """Values over the entries of all groups, by kind."""
        sizes = [len(counts.table.cells) for counts in self.kinds.values()]
        return dict(zip(self.kinds, entries.split(sizes), strict=True))

    def scores(self) -> dict[str, Tensor]:
        """For the projection: how far the counts would have to be multiplied until an entry goes, by group."""
        self.look()
        flat = [counts.table.flat(scores(counts.least.rank, counts.value)) for counts in self.kinds.values()]
        sizes = self.layout.sizes
        parts = torch.cat(flat).split(list(sizes.values())) if flat else ()
        return dict(zip(sizes, parts, strict=True))

    def at_limit(self) -> dict[str, tuple[int, int]]:
        """How many rows of each kind have no more to give, of how many."""
        return {
            kind: (int((counts.value >= counts.limit).sum()), len(counts.limit)) for kind, counts in self.kinds.items()
        }

    def state_dict(self) -> dict[str, Any]:
        """Counts, duals and masses."""
        return {kind: {name: getattr(counts, name) for name in STATE} for kind, counts in self.kinds.items()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """The inverse of `state_dict`."""
        for kind, counts in self.kinds.items():
            for name in STATE:
                setattr(counts, name, state[kind][name].to(counts.value))
