"""docs/families.md, made of the results."""

from __future__ import annotations

from collections import defaultdict
from pathlib import Path
from typing import Any

from .cases import CASES, WORDS
from .trying import DENSE_FAILS

PAGE = Path(__file__).parents[2] / "docs" / "families.md"
KINDS = ("heads", "qk_dims", "v_dims", "hidden", "branches")
MARKS = {"passed": "✓", "refused": "none", "failed": "**fails**"}
RUNS = {
    "export": "export",
    "export_strict": "strict",
    "compile": "compile",
    "reload": "reload",
    "training": "training",
    "features": "features",
    "classes": "new head",
}
MOST_REASONS = 4

HEAD = """# Families

What can be removed of which model, tried: random weights, norms, biases, tables and running statistics, removed at
random indices, and compared with the same model masked. Made by `python -m tests.matrix` of
`benchmarks/results/pass_matrix.json`; small versions of the models are tried in `tests/matrix/test_matrix.py`.

The columns heads to branches say how many of the groups that were found can be pruned, and how many of the residual
branches can be removed or gated; `attention` is found / computed (attention kernels that ran in a forward). The cases:

"""
MEANING = """
A case is ✓ where all that it asks for was removed, n/m where so much of it was (the rest is refused, for the reasons
below the table), none where nothing can be. Whatever was removed had to hold: parameters and MACs as predicted to the
last digit (torch's counter); equal to the masked model to 1e-4 of the largest logit, with fused attention and with
attention written out; other indices wrong by more than 1e-2; groups found again at their new size; another batch size;
a training step that reaches every parameter; state-dict names; and what the columns on the right say: `torch.export`
in every case, in strict mode and `torch.compile` in the largest, saving and loading in a new process (exact),
`forward_features`, `reset_classifier`. There ✓ means: in all cases tried; ∙ that the dense model itself can't. A small
version has the model's code with fewer blocks and channels.
"""


def text(result: dict[str, Any]) -> str:
    """The page."""
    parts = [HEAD, *(f"* **{case}**: {words}\n" for case, words in WORDS.items()), MEANING]
    sources: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for row in result["models"]:
        sources["the models that other tools were tried on" if row["headline"] else row["source"]].append(row)
    for source, rows in sources.items():
        parts += [f"\n## {source[0].upper()}{source[1:]}\n\n", *_table(rows)]
        parts += [_why(row) for row in rows]
    parts.append(_conditions(result["models"]))
    return "".join(parts)


def _table(rows: list[dict[str, Any]]) -> list[str]:
    columns = ["model", "attention", *KINDS, *CASES, *RUNS.values()]
    lines = [f"| {' | '.join(columns)} |\n", f"|{'---|' * len(columns)}\n"]
    for row in rows:
        if "cases" not in row:
            lines.append(f"| `{row['name']}` | {row.get('error')} |{' |' * (len(columns) - 2)}\n")
            continue
        size = ", small version" if row.get("small") else ""
        cells = [f"`{row['name']}`<br>{row['family']}{size}", _of(*row["attention"])]
        cells += [_of(*row["prunable"][kind]) for kind in KINDS]
        cells += [_case(row["cases"][case]) for case in CASES]
        cells += [_runs(row["cases"], check) for check in RUNS]
        lines.append(f"| {' | '.join(cells)} |\n")
    return lines


def _of(number: int, whole: int) -> str:
    return f"{number}/{whole}" if whole else ""


def _case(case: dict[str, Any]) -> str:
    mark = MARKS.get(case["verdict"])
    return mark if mark is not None else f"{case['shrunk']}/{case['asked']}"


def _runs(cases: dict[str, Any], check: str) -> str:
    tried = [case for case in cases.values() if check in case["checks"] or check in case["problems"]]
    if not tried or all(case["checks"].get(check) == "none" for case in tried):
        return ""
    if any(check in case["problems"] for case in tried):
        return "**fails**"
    return "∙" if any(case["checks"][check] == DENSE_FAILS for case in tried) else "✓"


def _why(row: dict[str, Any]) -> str:
    """The reasons of a model, those of many units first; what fails before them."""
    lines = []
    for case, found in row.get("cases", {}).items():
        lines += [f"  * **{case} fails**: {check}: {_plain(message)}\n" for check, message in found["problems"].items()]
    units: dict[str, list[str]] = defaultdict(list)
    for name, reason in row.get("reasons", {}).items():
        units[_general(reason, name)].append(name)
    ordered = sorted(units.items(), key=lambda item: -len(item[1]))
    for reason, names in ordered[:MOST_REASONS]:
        more = f" and {len(names) - 1} more" if len(names) > 1 else ""
        lines.append(f"  * `{names[0]}`{more}: {_plain(reason)}\n")
    rest = ordered[MOST_REASONS:]
    if rest:
        lines.append(
            f"  * and {sum(len(names) for _, names in rest)} others, of {len(rest)} reasons: see the JSON file\n"
        )
    return "".join([f"\n* `{row['name']}`\n", *lines]) if lines else ""


def _general(reason: str, name: str) -> str:
    """A reason without the number of the block that it is about, so that blocks alike share it."""
    owner = name.partition(":")[0].removesuffix(" (branch)")
    words = []
    for word in reason.split(" "):
        is_place = "." in word and word.strip("(),;").split(".")[0] == owner.split(".")[0] and "/" not in word
        words.append(".".join("*" if part.isdigit() else part for part in word.split(".")) if is_place else word)
    return " ".join(words)


def _plain(message: str) -> str:
    return message.replace("|", "\\|").replace("*", "\\*").replace("<", "&lt;")


def _conditions(rows: list[dict[str, Any]]) -> str:
    seen: dict[str, list[str]] = defaultdict(list)
    for row in rows:
        said = row["conditions"]
        versions = ", ".join(f"{k} {said[k]}" for k in ("torch", "timm", "torchvision", "transformers") if said[k])
        seen[f"{said['date'][:10]}, commit {said['commit']}, {versions}, python {said['python']}"].append(row["name"])
    lines = [f"* {where}: {len(names)} models\n" for where, names in seen.items()]
    return "".join(["\n## Conditions\n\n", *lines])
