"""Where UVC's norms come from: the input columns of the projections that read heads and hidden neurons.

All norms of all layers are computed together: per kind one padded table [R, n], a row for each layer (heads, hidden
neurons) or for each head (its dims). Nothing here waits for the device.

Shape legend: R rows, n entries of a row (padded to the longest), P positions along all columns of a kind.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

if TYPE_CHECKING:
    from collections.abc import Sequence

    from usdcore.units.types import Group, Units


@dataclass(frozen=True)
class Row:
    """One row of a table: its group, what an entry costs (MACs per image), and the branch and block that it is in."""

    group: str
    cost: int
    branch: str | None
    block: str | None


@dataclass(frozen=True)
class Columns:
    """Weights [out, in] whose columns belong to entries: `entry_of` [P] over all columns, -1 for none."""

    weights: list[nn.Parameter]
    widths: list[int]
    entry_of: Tensor
    num_entries: int

    def norms(self) -> Tensor:
        """Squared L2 norm of each entry's columns, [entries]."""
        squares = torch.cat([_squares(weight.detach()) for weight in self.weights])
        into = squares.new_zeros(self.num_entries + 1)
        return into.index_add(0, self.entry_of, squares)[: self.num_entries]

    @torch.no_grad()
    def scale(self, factor: Tensor) -> None:
        """Multiply each entry's columns by its factor [entries], in place."""
        of_column = torch.cat([factor, factor.new_ones(1)])[self.entry_of]
        parts = [
            part.view(1, -1, *[1] * (weight.ndim - 2))
            for part, weight in zip(of_column.split(self.widths), self.weights, strict=True)
        ]
        torch._foreach_mul_(list(self.weights), parts)  # type: ignore[attr-defined]


class Table:
    """Padded rows of one kind. `valid` [R, n] marks real entries, `sizes` [R] counts them."""

    def __init__(self, rows: Sequence[Row], sizes: Sequence[int], columns: Columns, device: torch.device) -> None:
        self.rows = tuple(rows)
        self.columns = columns
        self.sizes = torch.tensor(sizes, dtype=torch.float32, device=device)
        self.width = max(sizes, default=0)
        self.valid = torch.arange(self.width, device=device) < self.sizes[:, None]
        starts = torch.arange(len(sizes), device=device) * self.width
        self.cells = (starts[:, None] + torch.arange(self.width, device=device))[self.valid]

    def norms(self) -> Tensor:
        """Squared norm of each entry [R, n]; infinite where there is none."""
        return self.pad(self.columns.norms(), torch.inf)

    def pad(self, entries: Tensor, fill: float) -> Tensor:
        """Entries of all rows, one after the other, as a table [R, n]."""
        flat = entries.new_full((len(self.rows) * self.width,), fill)
        return flat.index_copy(0, self.cells, entries).view(len(self.rows), self.width)

    def flat(self, table: Tensor) -> Tensor:
        """The inverse of `pad`."""
        return table.reshape(-1).index_select(0, self.cells)


@dataclass(frozen=True)
class Layout:
    """One table of each kind. `head_of` [rows of dims] is the place of the row's head among all heads, -1 for none."""

    heads: Table
    dims: Table
    hidden: Table
    head_of: Tensor

    @property
    def tables(self) -> dict[str, Table]:
        """The tables that have rows."""
        found = {"heads": self.heads, "dims": self.dims, "hidden": self.hidden}
        return {kind: table for kind, table in found.items() if table.rows}

    @property
    def sizes(self) -> dict[str, int]:
        """Every group that UVC acts on, and its number of entries, in the order of the tables."""
        found: dict[str, int] = {}
        for table in self.tables.values():
            for row, size in zip(table.rows, table.sizes.tolist(), strict=True):
                found[row.group] = found.get(row.group, 0) + int(size)
        return found


def lay_out(model: nn.Module, units: Units, kinds: frozenset[str]) -> Layout:
    """The tables of a model for the kinds asked for (heads, dims, hidden); what can't be pruned is left out."""
    device = next(model.parameters()).device
    block_of = {branch.name: block.name for block in units.blocks for branch in block.branches}
    found: dict[str, list[tuple[Row, Group]]] = {"heads": [], "v_dims": [], "hidden": []}
    for unit in units.all:
        branch = unit.branch.name if unit.branch else None
        for group in unit.groups:
            wanted = "dims" if group.kind == "v_dims" else group.kind
            if group.kind in found and wanted in kinds and group.reason is None:
                row = Row(group.name, group.macs_per_entry, branch, block_of.get(branch or ""))
                found[group.kind].append((row, group))

    def table(kind: str) -> Table:
        columns = _columns(model, [group for _, group in found[kind]], device)
        return Table([row for row, _ in found[kind]], [group.size for _, group in found[kind]], columns, device)

    dims, head_of = _dims(model, found, device)
    return Layout(table("heads"), dims, table("hidden"), head_of)


def _dims(model: nn.Module, found: dict[str, list[tuple[Row, Group]]], device: torch.device) -> tuple[Table, Tensor]:
    """A row for each head, and the place of its head among all heads."""
    first, place = {}, 0
    for row, group in found["heads"]:
        first[row.group.removesuffix(":heads")] = place
        place += group.size
    rows: list[Row] = []
    sizes: list[int] = []
    head_of: list[int] = []
    for row, group in found["v_dims"]:
        assert group.parent_of is not None
        start = first.get(row.group.removesuffix(":v_dims"))
        for head, number in enumerate(torch.bincount(torch.from_numpy(group.parent_of)).tolist()):
            rows.append(row)
            sizes.append(number)
            head_of.append(-1 if start is None else start + head)
    columns = _columns(model, [group for _, group in found["v_dims"]], device)
    return Table(rows, sizes, columns, device), torch.tensor(head_of, dtype=torch.int64, device=device)


def _columns(model: nn.Module, groups: list[Group], device: torch.device) -> Columns:
    weights, widths, entries, total = [], [], [torch.zeros(0, dtype=torch.int64)], 0
    for group in groups:
        for point in group.masks:
            weight = model.get_submodule(point.module).get_parameter("weight")
            # What a projection is given may have more positions than columns are left: heads cut by different numbers.
            own = [m for m in group.members if m.tensor == f"{point.module}.weight" and m.axis == 1]
            entry_of = torch.from_numpy(own[0].entry_of if own else point.entry_of)
            entries.append(torch.where(entry_of < 0, -1, entry_of + total))
            weights.append(weight)
            widths.append(weight.shape[1])
        total += group.size
    entry_of = torch.cat(entries)
    return Columns(weights, widths, torch.where(entry_of < 0, total, entry_of).to(device), total)


def _squares(weight: Tensor) -> Tensor:
    return weight.float().square().sum(dim=[d for d in range(weight.ndim) if d != 1])
