"""Writes `benchmarks/README.md`: what each script measures, how to run it, and the last results with their conditions.

python benchmarks/table.py

Every number comes from `benchmarks/results/*.json`; run this again after a benchmark has written there.
"""

from __future__ import annotations

import json
import statistics
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
PAGE = HERE / "README.md"
HEAD = """# Benchmarks

Each script measures ours beside others in one run, interleaved, on one thread unless told otherwise, and writes a JSON
file with its conditions to `benchmarks/results/`. Machines are noisy: read ratios and medians, not single figures.
`python benchmarks/table.py` writes this page from these files; no number on it is typed.

The pass matrix over model families is made by `python -m tests.matrix` (see [families](../docs/families.md)); the
accuracy of whole runs is in [results](../docs/results.md).
"""

Rows = list[list[str]]


@dataclass(frozen=True)
class Page:
    """One script: what it asks, how to run it, and the table of its result in `<script>.json`."""

    script: str
    question: str
    command: str
    columns: str = ""
    rows: Callable[[dict[str, Any]], Rows] | None = None

    @property
    def file(self) -> Path:
        """Where the result lies."""
        return HERE / "results" / f"{self.script}.json"


def seconds(value: float) -> str:
    return f"{value:.2f} s" if value >= 1 else f"{1e3 * value:.1f} ms"


def found_units(result: dict[str, Any]) -> Rows:
    return [
        [model["model"], way, seconds(taken["median"])]
        for model in result["models"]
        for way, taken in model["seconds"].items()
    ]


def discovered(result: dict[str, Any]) -> Rows:
    """Every step of every model, whatever the contenders are called."""
    return [
        [model["model"], step, way, seconds(taken["median"])]
        for model in result["models"]
        for step, ways in model.items()
        if isinstance(ways, dict)
        for way, taken in ways.items()
        if isinstance(taken, dict) and "median" in taken
    ]


def stepped(result: dict[str, Any]) -> Rows:
    return [
        [
            row["model"],
            row["strategies"],
            seconds(row["seconds"]),
            f"{row['ratio_to_plain']:.3f}",
            f"{row['memory_ratio_to_plain']:.3f}",
            str(row["operations"] or ""),
        ]
        for row in result["rows"]
    ]


def budgets(result: dict[str, Any]) -> Rows:
    rows = []
    for target, own in grouped(result["rows"], lambda row: row["target"]):
        off = [abs(row["searched"] - row["target"]) for row in own]
        accuracy = statistics.mean(row["top1_finetuned"] for row in own)
        rows.append([f"{target:g}", str(len(own)), f"{statistics.mean(off):.4f}", f"{max(off):.4f}", f"{accuracy:.2f}"])
    return rows


def ragged(result: dict[str, Any]) -> Rows:
    rows = []
    for key, own in grouped(result["rows"], lambda row: (row["model"], row["dims"], row["part"], row["kept"])):
        ratio = statistics.mean(row["ratio_to_masked"]["usdcore"] for row in own)
        rows.append([*map(str, key), f"{ratio:.3f}"])
    return rows


def resumed(result: dict[str, Any]) -> Rows:
    return [
        [point, str(len(own)), str(sum(bool(row["equal"]) for row in own))]
        for point, own in grouped(result["rows"], lambda row: row["point"])
    ]


def looked(result: dict[str, Any]) -> Rows:
    return [
        [row["recipe"], str(row["batch_size"]), "yes" if row["clips"] else "no", f"{100 * row['share']:.2f} %"]
        for row in result["rows"]
    ]


def skipped(result: dict[str, Any]) -> Rows:
    return [
        [
            row["model"],
            str(row["threads"]),
            str(row["batch_size"]),
            *(f"{row[key]:.3f}" for key in ("macs_ratio", "time_ratio", "share_of_ideal")),
            "-" if row["goal"] is None else f"{row['goal']:g}",
            row["cause"] or "",
        ]
        for row in result["rows"]
    ]


def rounded(result: dict[str, Any]) -> Rows:
    return [
        [name, str(row["plans"]), *(f"{row[key]:.3f}" for key in ("median", "worst", "largest_macs_difference"))]
        for name, row in result["summary"].items()
    ]


def grouped(rows: list[dict[str, Any]], key: Callable[[dict[str, Any]], Any]) -> Iterator[tuple[Any, list[Any]]]:
    for value, own in groupby(sorted(rows, key=key), key):
        yield value, list(own)


PAGES = [
    Page(
        "find_units", "How long finding the units takes, beside other ways to get a graph of the same model.",
        "python benchmarks/find_units.py", "model | way | median", found_units,
    ),
    Page(
        "discovery", "Finding, ranking and cutting heads and neurons beside Torch-Pruning: same models, same cut.",
        "pip install torch-pruning==1.6.1 && python benchmarks/discovery.py", "model | step | way | median", discovered,
    ),
    Page(
        "skipping",
        "What pruned and skipping forwards gain on the clock, as a share of the ideal (MACs ratio over time ratio): "
        "plans at half of the MACs in whole multiples, with odd widths, with heads of unequal dims, each also with "
        "hidden widths in multiples of 32, and skipping at a mean rate of one half, gate networks included.",
        "python benchmarks/skipping.py",
        "plan | threads | batch | MACs | time | share of ideal | goal | cause of the rest", skipped,
    ),
    Page(
        "rounding",
        "Random plans at equal MACs: the speed of those whose hidden widths are rounded, over those as they come.",
        "python benchmarks/rounding.py", "widths | plans | median | worst | largest difference in MACs", rounded,
    ),
    Page(
        "ragged_heads",
        "Heads of unequal width: the time of the cut over that of the masked attention or block, mean over batch "
        "sizes.",
        "python benchmarks/ragged_heads.py", "model | dims | part | kept | usdcore over masked", ragged,
    ),
    Page(
        "search_step",
        "What a search step costs beside a plain training step: its time, what it keeps for the backward pass (on "
        "CUDA, the peak of what is allocated), and the operations that torch dispatches in it.",
        "python benchmarks/search_step.py", "model | strategies | step | time over plain | memory over plain | "
        "operations", stepped,
    ),
    Page(
        "guard", "What looking for bad numbers and collapsed gates costs of a training step.",
        "python benchmarks/guard.py", "recipe | batch | clips | share of a step", looked,
    ),
    Page(
        "uvc_budget", "Whether UVC's search meets its budget by itself, over targets and seeds.",
        "python benchmarks/uvc_budget.py",
        "target | seeds | mean distance of the search | largest | mean top-1 after fine-tuning", budgets,
    ),
    Page(
        "resume", "Whether a run that is broken off at any moment ends with the bits of an unbroken one.",
        "python benchmarks/resume.py", "broken off | runs | equal", resumed,
    ),
    Page(
        "processes", "Whether one, two and four processes come to the same losses, weights and plan.",
        "python benchmarks/processes.py",
    ),
]  # fmt: skip


def conditions(result: dict[str, Any]) -> str:
    """The machine, versions and date that stand in a result, under whatever key its script puts them."""
    stated = {**result, **result.get("conditions", {})}
    versions = {**stated, **stated.get("versions", {})}
    for row in result.get("rows", []):  # results of whole runs hold them row by row
        if isinstance(row, dict) and isinstance(row.get("provenance"), dict):
            own = row["provenance"]
            stated, versions = {**own, **stated}, {**own["versions"], **versions}
    load = stated.get("load_average")
    machine = stated.get("cpu") or stated.get("machine") or stated.get("device")
    parts = [
        str(stated.get("date", "no date"))[:10],
        str(machine) if isinstance(machine, str) else "machine not recorded",
        *([f"load {load[0]:.1f}"] if load else []),
        *([f"{stated['threads']} thread{'s' * (stated['threads'] != 1)}"] if "threads" in stated else []),
        *(f"{name} {versions[name]}" for name in ("torch", "timm", "torch-pruning", "python") if name in versions),
    ]
    return ", ".join(parts)


def section(page: Page) -> str:
    lines = [f"## `{page.script}.py`", "", page.question, "", f"    {page.command}", ""]
    if page.rows is None:
        return "\n".join([*lines, "It prints its findings and keeps none.", ""])
    if not page.file.is_file():
        return "\n".join([*lines, "Not run.", ""])
    result = json.loads(page.file.read_text())
    columns = page.columns.split(" | ")
    table = [columns, ["---"] * len(columns), *page.rows(result)]
    lines += [f"| {' | '.join(row)} |" for row in table]
    return "\n".join([*lines, "", f"[{page.file.name}](results/{page.file.name}): {conditions(result)}.", ""])


def text() -> str:
    """The whole page."""
    return "\n".join([HEAD, *map(section, PAGES)])


if __name__ == "__main__":
    PAGE.write_text(text())
