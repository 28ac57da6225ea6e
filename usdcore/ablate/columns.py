"""The quantities that a table may have: where each is in a run's result, how it is printed, how two are compared."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from usdcore.errors import nearest
from usdcore.report import text

if TYPE_CHECKING:
    from usdcore.report.result import Measured, Result

Kind = Literal["count", "percent", "points", "fraction", "times"]
Model = Literal["compressed", "dense", "narrow", "random"]
"""Of a run: its own, the dense one, or a control by its name."""

TITLES: dict[str, tuple[str, Kind]] = {
    "params": ("params", "count"),
    "macs": ("MACs", "count"),
    "executed_macs": ("executed MACs", "count"),
    "share": ("executed, of dense", "fraction"),
    "static_share": ("MACs, of dense", "fraction"),
    "block_share": ("blocks, of dense", "fraction"),
    "top1": ("top-1", "percent"),
    "top1_sorted": ("top-1, sorted by class", "percent"),
    "drop": ("top-1 lost", "points"),
    "gate_macs": ("gates' MACs", "count"),
    "gate_flops": ("gates' FLOPs", "count"),
    "searched": ("searched, of dense", "fraction"),
    "speedup": ("faster than dense", "times"),
}
"""By key: the title and how it is printed.

`macs` and `static_share` are with every gate on. `block_share` leaves embedding, classifier and gates out, but not out
of the dense model that it divides by. `gate_flops` is the paper's count, 2 * in * out + out of each linear map.
`top1_sorted` is with evaluation
images in the order of their classes, at the budget's batch size: the hardest batches for a decision that they share.
`searched` is what the search came to by itself, before any projection. `speedup` is how much
faster than the dense model it ran, side by side, at a batch size that the recipe's `latency` names.
"""

OF_COMPRESSED = ("block_share", "gate_macs", "gate_flops", "searched", "top1_sorted")
"""What only a compressed model has."""

_AT_BATCH = ("top1", "executed_macs", "speedup")
_WITH_BATCH = re.compile(r"([a-z0-9_]+)@([1-9][0-9]{0,7})")


@dataclass(frozen=True)
class Column:
    """A quantity, perhaps at one evaluation batch size."""

    key: str
    quantity: str
    batch_size: int | None = None

    @property
    def title(self) -> str:
        """What stands above the column."""
        at = "" if self.batch_size is None else f", batch {self.batch_size}"
        return TITLES[self.quantity][0] + at

    @property
    def kind(self) -> Kind:
        """How its numbers are printed."""
        return TITLES[self.quantity][1]


def parse_column(key: str) -> Column:
    """A column by its key. Errors: `ValueError` for an unknown one, with the nearest."""
    quantity, batch_size = key, None
    if found := _WITH_BATCH.fullmatch(key):
        quantity, batch_size = found[1], int(found[2])
        if quantity in TITLES and quantity not in _AT_BATCH:
            raise ValueError(
                f"{key!r}: only {', '.join(_AT_BATCH[:-1])} and {_AT_BATCH[-1]} are measured at several batch sizes"
            )
    if quantity not in TITLES:
        raise ValueError(f"there is no column {key!r}; {nearest(quantity, TITLES)}")
    if quantity == "speedup" and batch_size is None:
        raise ValueError(f"{key!r}: at which batch size? write speedup@1")
    return Column(key, quantity, batch_size)


def parse_accuracy(key: str) -> Column:
    """A column that is an accuracy. Errors: as `parse_column`, and one that is none."""
    column = parse_column(key)
    if column.kind != "percent":
        raise ValueError(f"{key!r} is no accuracy; write top1, top1@32 or top1_sorted")
    return column


def measured(column: Column, result: Result, model: Model) -> float | None:
    """A run's number. None: the run has none. Top-1 in percent, `drop` in points, shares as fractions."""
    own, dense = _model(result, model), result.dense
    if own is None:
        return None
    if column.quantity == "speedup":
        return next((1 / row.ratio_to_dense for row in own.latency if row.batch_size == column.batch_size), None)
    if column.batch_size is not None:
        return _at_batch(column, result) if model == "compressed" else None
    match column.quantity:
        case "params":
            return own.params
        case "macs":
            return own.macs
        case "executed_macs":
            return _executed(own)
        case "share":
            return _ratio(_executed(own), dense.macs)
        case "static_share":
            return _ratio(own.macs, dense.macs)
        case "top1":
            return own.top1
        case "drop":
            return None if own.top1 is None or dense.top1 is None else dense.top1 - own.top1
    return _of_compressed(column.quantity, result) if model == "compressed" else None


def _of_compressed(quantity: str, result: Result) -> float | None:
    match quantity:
        case "gate_macs":
            return result.gates.macs
        case "gate_flops":
            return result.gates.paper_flops
        case "searched":
            return result.budget.after_search
        case "top1_sorted":
            return _sorted(result)
    return None


def _sorted(result: Result) -> float | None:
    """Top-1 on batches in the order of classes; a model without gates does not know the order."""
    own = (result.budget.batch_size, result.budget.scope, "sorted")
    found = next((row.top1 for row in result.eval if (row.batch_size, row.scope, row.order) == own), None)
    return result.compressed.top1 if found is None and not result.gates.decisions else found


def _at_batch(column: Column, result: Result) -> float | None:
    for row in result.eval:
        if (row.batch_size, row.scope, row.order) == (column.batch_size, result.budget.scope, "shuffled"):
            return row.top1 if column.quantity == "top1" else row.executed_macs
    return None


def _model(result: Result, model: Model) -> Measured | None:
    if model == "compressed":
        return result.compressed
    if model == "dense":
        return result.dense
    return next((control for control in result.controls if control.name == model), None)


def _executed(model: Measured) -> float | None:
    return model.macs if model.executed_macs is None else model.executed_macs


def _ratio(value: float | None, whole: float | None) -> float | None:
    return None if value is None or not whole else value / whole


def show(column: Column, value: float) -> str:
    """A number as its column prints it."""
    match column.kind:
        case "count":
            return text.count(value)
        case "fraction":
            return f"{100 * value:.2f} %"
        case "percent":
            return f"{value:.2f} %"
        case "points":
            return f"{value:.2f}"
        case "times":
            return f"{value:.2f}x"


def show_claim(column: Column, value: float) -> str:
    """A paper's number, without digits that it does not print."""
    match column.kind:
        case "count":
            unit, prefix = next(((u, p) for u, p in ((1e9, "G"), (1e6, "M"), (1e3, "k")) if abs(value) >= u), (1.0, ""))
            return f"{value / unit:g} {prefix}".rstrip()
        case "fraction":
            return f"{100 * value:g} %"
        case "percent":
            return f"{value:g} %"
        case "points":
            return f"{value:g}"
        case "times":
            return f"{value:g}x"


def show_spread(column: Column, value: float) -> str:
    """A standard deviation, in the unit of `show`."""
    match column.kind:
        case "count":
            return text.count(value)
        case "fraction":
            return f"{100 * value:.2f}"
        case "percent" | "points" | "times":
            return f"{value:.2f}"


def difference(column: Column, ours: float, papers: float) -> tuple[float, str]:
    """Ours against the paper's: points for accuracies and shares, else percent of theirs; and in words."""
    if column.kind in ("count", "times"):
        value = 100 * (ours / papers - 1) if papers else 0.0
        return value, f"{value:+.2f} %"
    value = 100 * (ours - papers) if column.kind == "fraction" else ours - papers
    return value, f"{value:+.2f} points"
