"""What the finished runs say of a table's claims: seed by seed, and never more than the seeds allow."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from statistics import mean, stdev
from typing import TYPE_CHECKING, Any, Literal

from usdcore.ablate.columns import Column, measured, parse_column

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from usdcore.ablate.cells import RowCells
    from usdcore.ablate.schema import Claim

Word = Literal["holds", "does not hold", "within noise", "one seed", "not run"]
"""A verdict. Within noise: the confidence interval of the mean difference holds 0; one seed: no noise is known."""

STUDENT = (12.71, 4.30, 3.18, 2.78, 2.57, 2.45, 2.36, 2.31, 2.26, 2.23)
"""Half the width of a 95 % confidence interval in standard errors (Student's t), for 2, 3, ... paired seeds; for more
than are listed, the last.
"""


@dataclass(frozen=True)
class Evidence:
    """One comparison. `points` of top-1 for each seed: how much better the row is, or how far its columns lie apart."""

    what: str
    verdict: Word
    points: tuple[float, ...]
    is_signed: bool = True

    @property
    def mean(self) -> float | None:
        """Over seeds."""
        return mean(self.points) if self.points else None

    @property
    def error(self) -> float | None:
        """Standard error of the mean; None below two seeds."""
        return stdev(self.points) / math.sqrt(len(self.points)) if len(self.points) > 1 else None

    @property
    def words(self) -> str:
        """As it is printed."""
        if self.mean is None:
            return f"{self.what}: {self.verdict}"
        sign = "+" if self.is_signed else ""
        spread = "" if self.error is None else f" ± {self.error:.2f}"
        seeds = ", ".join(f"{value:{sign}.2f}" for value in self.points)
        return f"{self.what}: {self.mean:{sign}.2f}{spread} points ({seeds})"


@dataclass(frozen=True)
class Verdict:
    """A claim, what becomes of it, and every comparison behind that."""

    claim: Claim
    verdict: Word
    evidence: tuple[Evidence, ...]

    def as_json(self) -> dict[str, Any]:
        """For programs."""
        return {
            "text": self.claim.text,
            "row": self.claim.row,
            "verdict": self.verdict,
            "evidence": [asdict(one) | {"mean": one.mean, "error": one.error} for one in self.evidence],
        }


def judge(claims: Sequence[Claim], rows: Sequence[RowCells]) -> tuple[Verdict, ...]:
    """Every claim whose rows are all part of this scale.

    Two rows are compared on the seeds that both have finished. A claim holds where every comparison does, and does not
    where one goes the other way, by more than half of a 95 % confidence interval.
    """
    there = {row.row.name: row for row in rows}
    return tuple(_judged(claim, there) for claim in claims if {claim.row, *claim.better_than} <= there.keys())


def _judged(claim: Claim, rows: dict[str, RowCells]) -> Verdict:
    columns = [parse_column(key) for key in claim.on]
    own = [_by_seed(rows[claim.row], column) for column in columns]
    evidence = tuple(_flat(claim, own) if claim.flat_within is not None else _better(claim, rows, columns, own))
    return Verdict(claim, _together([one.verdict for one in evidence]), evidence)


def _better(
    claim: Claim, rows: dict[str, RowCells], columns: list[Column], own: list[dict[int, float]]
) -> Iterator[Evidence]:
    for name in claim.better_than:
        for column, mine in zip(columns, own, strict=True):
            other = _by_seed(rows[name], column)
            found = tuple(mine[seed] - other[seed] for seed in mine if seed in other)
            at = "" if len(columns) == 1 else f", {column.title}"
            yield Evidence(f"over {name}{at}", _word(found), found)


def _flat(claim: Claim, own: list[dict[int, float]]) -> Iterator[Evidence]:
    """One model in several batches: its images are the same, so a difference is no noise of the seed's."""
    assert claim.flat_within is not None
    seeds = [seed for seed in own[0] if all(seed in column for column in own)]
    apart = tuple(max(column[seed] for column in own) - min(column[seed] for column in own) for seed in seeds)
    word: Word = "not run" if not apart else "holds" if max(apart) <= claim.flat_within else "does not hold"
    yield Evidence(f"apart, of {claim.flat_within:g} allowed", word, apart, is_signed=False)


def _by_seed(row: RowCells, column: Column) -> dict[int, float]:
    found = {}
    for job, result in row.runs:
        value = None if result is None else measured(column, result, row.row.model)
        if value is not None and math.isfinite(value):
            found[job.seed] = value
    return found


def _word(differences: tuple[float, ...]) -> Word:
    if len(differences) < 2:
        return "one seed" if differences else "not run"
    width = STUDENT[min(len(differences) - 1, len(STUDENT)) - 1]
    bound = width * stdev(differences) / math.sqrt(len(differences))
    middle = mean(differences)
    return "holds" if middle > bound else "does not hold" if middle < -bound else "within noise"


def _together(words: list[Word]) -> Word:
    """Of all comparisons: the least that can be said."""
    worst: tuple[Word, ...] = ("not run", "does not hold", "one seed", "within noise", "holds")
    return next(word for word in worst if word in words)


__all__ = ["Evidence", "Verdict", "judge"]
