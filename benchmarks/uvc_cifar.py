"""What each part of UVC is worth on CIFAR-10, at equal MACs and equal total epochs, over seeds.

python benchmarks/uvc_cifar.py FOLDER --out FILE [--seeds 3] [--jobs 2] [--work DIR] [--variants NAME ...]

FOLDER has train/<class>/* and test/<class>/*. Every variant is a recipe made from recipes/cifar10/uvc_small.yaml and
run by `usdcore run`; the dense model of a seed is trained once and given to the variants that start from it. Runs that
have a result are not run again.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

BASE = Path(__file__).resolve().parent.parent / "recipes" / "cifar10" / "uvc_small.yaml"
EPOCHS = {"dense": 12, "search": 6, "finetune": 6}
KD = {"use": "distill", "alpha": 0.5, "tau": 2.0}
FINETUNE_KD = [{"use": "distill"}]
#: Half of the dense model's MACs by width alone.
NARROW = {"patch_size": 8, "embed_dim": 68, "depth": 6, "num_heads": 4, "mlp_ratio": 3.85}

VARIANTS: dict[str, dict[str, Any]] = {
    "joint": {"search": [{"use": "uvc"}, KD], "finetune": FINETUNE_KD},
    "pruning and skipping": {"search": [{"use": "uvc"}]},
    "pruning only": {"search": [{"use": "uvc", "skip": "none"}]},
    "pruning with KD": {"search": [{"use": "uvc", "skip": "none"}, KD], "finetune": FINETUNE_KD},
    "skipping only": {
        "search": [{"use": "uvc", "heads": False, "dims": False, "hidden": False}],
        "budget": 0.515,  # three of six blocks leave 0.5124
    },
    "KD only": {"narrow": [{**KD, "teacher": {"file": "DENSE"}}]},
    "narrow": {"narrow": []},
    "faithful": {"search": [{"use": "uvc", "faithful": True}, KD], "finetune": FINETUNE_KD},
    "faithful, clamps pass": {
        "search": [{"use": "uvc", "faithful": True, "public": {"clamp_gradient": "passes"}}, KD],
        "finetune": FINETUNE_KD,
    },
}


def main() -> None:
    """Run what has no result, then write the table."""
    asked = _arguments()
    asked.work.mkdir(parents=True, exist_ok=True)
    with ThreadPoolExecutor(asked.jobs) as pool:
        dense = list(pool.map(lambda seed: _run(asked, "dense", seed, {"dense": True}), range(asked.seeds)))
        todo = [(name, seed) for seed in range(asked.seeds) for name in asked.variants]
        found = list(pool.map(lambda item: _run(asked, item[0], item[1], VARIANTS[item[0]]), todo))
    rows = [row for row in (*dense, *found) if row is not None]
    result = {"recipe": BASE.name, "epochs": EPOCHS, "rows": rows, "table": table(rows)}
    asked.out.write_text(json.dumps(result, indent=1) + "\n")
    print(result["table"])


def table(rows: list[dict[str, Any]]) -> str:
    """Markdown: mean and spread over seeds for each variant."""
    lines = [
        "| variant | seeds | MACs left | top-1 | of the search: R | top-1 before fine-tuning |",
        "|---|---|---|---|---|---|",
    ]
    for name in dict.fromkeys(row["variant"] for row in rows):
        own = [row for row in rows if row["variant"] == name]
        cells = [name, str(len(own)), _spread(own, "macs", 4), _spread(own, "top1", 2), _spread(own, "searched", 4)]
        lines.append(f"| {' | '.join([*cells, _spread(own, 'top1_before_finetune', 2)])} |")
    return "\n".join(lines)


def _spread(rows: list[dict[str, Any]], key: str, digits: int) -> str:
    values = [row[key] for row in rows if row[key] is not None]
    if not values:
        return ""
    spread = f" ± {statistics.stdev(values):.{digits}f}" if len(values) > 1 else ""
    return f"{statistics.mean(values):.{digits}f}{spread}"


def _run(asked: argparse.Namespace, name: str, seed: int, variant: dict[str, Any]) -> dict[str, Any] | None:
    """One run by the command line; its row, or None where it failed."""
    folder = asked.work / f"{_slug(name)}-{seed}"
    if not (folder / "result.json").is_file():
        recipe = asked.work / f"{folder.name}.yaml"
        recipe.write_text(json.dumps(_recipe(asked, name, seed, variant), indent=1))  # JSON is YAML
        log = (asked.work / f"{folder.name}.log").open("a")
        code = subprocess.run(
            [sys.executable, "-m", "usdcore", "run", str(recipe), "--out", str(folder)],
            stdout=log,
            stderr=log,
            check=False,
        ).returncode
        print(f"{folder.name}: {'done' if code in (0, 3) else 'failed'} ({code})", flush=True)
    if not (folder / "result.json").is_file():
        return None
    dense = json.loads((asked.work / f"dense-{seed}" / "result.json").read_text())
    return _row(name, seed, json.loads((folder / "result.json").read_text()), dense["dense"]["macs"])


def _slug(name: str) -> str:
    return name.replace(" ", "-").replace(",", "").lower()


def _recipe(asked: argparse.Namespace, name: str, seed: int, variant: dict[str, Any]) -> dict[str, Any]:
    recipe: dict[str, Any] = {
        "extends": str(BASE),
        "name": f"cifar10-uvc-{_slug(name)}-{seed}",
        "data": {"root": str(asked.root.resolve())},
        "seed": seed,
        "budget": {"macs": variant.get("budget", 0.5)},
        "controls": [],
    }
    model = asked.work / f"dense-{seed}" / "model.safetensors"
    text = json.loads(json.dumps(variant).replace('"DENSE"', json.dumps(str(model.resolve()))))
    if "dense" in variant or "narrow" in variant:
        epochs = EPOCHS["dense"] if "dense" in variant else sum(EPOCHS.values())
        recipe["budget"]["macs"] = 1.0
        recipe["phases"] = [{"name": "dense", "epochs": epochs, "strategies": text.get("narrow", [])}]
        if "narrow" in variant:
            recipe["model"] = {"kwargs": NARROW}
        return recipe
    recipe["model"] = {"weights": str(model.resolve())}
    fast = {"lr": 5.0e-4, "warmup_epochs": 0}
    recipe["phases"] = [
        {
            "name": "search",
            "epochs": EPOCHS["search"],
            "train": {**fast, "sched": "none"},
            "strategies": text["search"],
        },
        {"name": "finetune", "epochs": EPOCHS["finetune"], "train": fast, "strategies": text.get("finetune", [])},
    ]
    return recipe


def _row(name: str, seed: int, result: dict[str, Any], dense_macs: int) -> dict[str, Any]:
    compressed = result["compressed"]
    return {
        "variant": name,
        "seed": seed,
        "top1": compressed["top1"],
        "macs": compressed["macs"] / dense_macs,
        "params": compressed["params"],
        "searched": result["budget"]["after_search"],
        "top1_before_finetune": compressed.get("top1_before_finetune"),
        "recipe_sha256": result["recipe_sha256"],
        "provenance": result["provenance"],
    }


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("root", type=Path)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--work", type=Path, default=Path("runs/uvc-cifar"))
    parser.add_argument("--variants", nargs="+", default=list(VARIANTS), choices=list(VARIANTS))
    return parser.parse_args()


if __name__ == "__main__":
    main()
