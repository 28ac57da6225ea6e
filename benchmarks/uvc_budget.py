"""Does UVC's search meet its budget by itself, and what does it remove? A table over targets and seeds.

python benchmarks/uvc_budget.py [--seeds 10] [--targets 0.35 0.5 0.7 0.9] [--root FOLDER] [--epochs 20] [--out FILE]

A small DeiT is trained once, then every search starts from it with its own seed. Data: scikit-learn's digits (no
download), or an image folder with train/ and test/. Each row says what was left before and after the projection, what
share of the dense model's MACs went with blocks, heads, head dims and neurons, and top-1 before and after fine-tuning.
"""

from __future__ import annotations

import argparse
import copy
import datetime
import json
import platform
import sys
import time
from pathlib import Path
from typing import Any

import timm
import torch
from torch import Tensor, nn

from usdcore.costs import cost
from usdcore.engine.data import DataSets, eval_loader, train_loader
from usdcore.engine.optim import model_optimizer
from usdcore.errors import BudgetMissed
from usdcore.hooks import registry
from usdcore.recipe.training import TrainConfig
from usdcore.session import Session
from usdcore.shares import removed
from usdcore.strategy import Budget
from usdcore.units import find_units
from usdcore.units.types import Units

BATCH = 64
MODELS = {
    "digits": {"img_size": 8, "patch_size": 2, "embed_dim": 96, "depth": 6, "num_heads": 6, "in_chans": 1},
    "folder": {"img_size": 32, "patch_size": 8, "embed_dim": 96, "depth": 6, "num_heads": 6},
}
KINDS = ("branches", "heads", "v_dims", "hidden")
LR = {"dense": 2e-3, "search": 5e-4, "finetune": 5e-4}


def main() -> None:
    """Run what was asked for; rows are printed and written as they come."""
    asked = _arguments()
    torch.set_num_threads(1)
    kind = "folder" if asked.root else "digits"
    data = _data(asked.root)
    torch.manual_seed(0)
    dense = timm.create_model("deit_tiny_patch16_224", num_classes=data.num_classes, **MODELS[kind])
    _train(Session(dense, _example(data), Budget("macs", 0.5, BATCH)), data, asked.dense_epochs, LR["dense"], 0)
    result: dict[str, Any] = {
        "model": {"name": "deit_tiny_patch16_224", **MODELS[kind], "macs": cost(_units(dense, data)).macs},
        "data": {"description": data.description, "sha256": data.fingerprint},
        "dense_top1": _top1(dense, data),
        "epochs": {"dense": asked.dense_epochs, "search": asked.epochs, "finetune": asked.finetune},
        "options": dict(option.split("=") for option in asked.set),
        "conditions": _conditions(),
        "rows": [],
    }
    print(f"dense top-1 {result['dense_top1']:.2f} %, {result['model']['macs']} MACs")
    for target in asked.targets:
        for seed in range(asked.seeds):
            row = search(copy.deepcopy(dense), data, target, seed, asked)
            result["rows"].append(row)
            print(json.dumps(row), flush=True)
            if asked.out:
                asked.out.write_text(json.dumps(result, indent=1) + "\n")
    print(summary(result["rows"]))


def search(model: nn.Module, data: DataSets, target: float, seed: int, asked: argparse.Namespace) -> dict[str, Any]:
    """One search, its projection and a fine-tuning."""
    started = time.perf_counter()
    options = {key: json.loads(value) for key, value in (option.split("=") for option in asked.set)}
    config = registry().config("strategy", "uvc").model_validate({"use": "uvc", **options})
    strategy = registry().load("strategy", "uvc")(config)
    session = Session(model, _example(data), Budget("macs", target, BATCH))
    dense, units = session.dense, session.units
    torch.manual_seed(seed)
    session.begin_phase([strategy])
    _train(session, data, asked.epochs, LR["search"], seed)
    row: dict[str, Any] = {"target": target, "seed": seed}
    try:
        end = session.end_phase(lambda: (images for images, _ in eval_loader(data.train_eval, BATCH, seed, 4 * BATCH)))
    except BudgetMissed as error:
        return row | {"error": str(error), "seconds": round(time.perf_counter() - started, 1)}
    row |= {"searched": end.searched, "projected": cost(session.units).macs / dense.macs}
    row |= {
        "removed": dict.fromkeys(KINDS, 0.0) | removed(units, session.plan),
        "top1_projected": _top1(session.model, data),
    }
    session.begin_phase([])
    _train(session, data, asked.finetune, LR["finetune"], seed + 1000)
    return row | {"top1_finetuned": _top1(session.model, data), "seconds": round(time.perf_counter() - started, 1)}


def summary(rows: list[dict[str, Any]]) -> str:
    """A Markdown table: means over seeds."""
    lines = [
        "| target | runs | missed | R of the search | largest miss | R projected | blocks | heads | dims | neurons "
        "| top-1 projected | fine-tuned |",
        "|---|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    for target in sorted({row["target"] for row in rows}):
        own = [row for row in rows if row["target"] == target]
        good = [row for row in own if "error" not in row]
        if not good:
            lines.append(f"| {target:g} | {len(own)} | {len(own)} | | | | | | | | | |")
            continue
        kinds = [f"{_mean(row['removed'][kind] for row in good):.3f}" for kind in KINDS]
        worst = max(abs(row["searched"] - target) for row in good)
        cells = [f"{target:g}", len(own), len(own) - len(good), f"{_mean(r['searched'] for r in good):.4f}"]
        cells += [f"{worst:.4f}", f"{_mean(r['projected'] for r in good):.4f}", *kinds]
        cells += [f"{_mean(r['top1_projected'] for r in good):.2f}", f"{_mean(r['top1_finetuned'] for r in good):.2f}"]
        lines.append(f"| {' | '.join(str(cell) for cell in cells)} |")
    return "\n".join(lines)


def _train(session: Session, data: DataSets, epochs: int, lr: float, seed: int) -> None:
    """A plain loop: AdamW, cosine after one epoch of warm-up."""
    config = (
        registry()
        .config("data-source", "digits")
        .model_validate({"source": "digits", "batch_size": BATCH, "input_size": 8})
    )
    optimizer = model_optimizer(session.model, TrainConfig(lr=lr))
    own = [{"params": g.parameters, "lr": g.lr or lr, "weight_decay": g.weight_decay} for g in session.parameter_groups]
    own = [group for group in own if group["params"]]
    gates = torch.optim.AdamW(own) if own else None
    steps = len(train_loader(data, config, seed, 0))
    session.model.train()
    for epoch in range(epochs):
        for step, (images, target) in enumerate(train_loader(data, config, seed, epoch), start=epoch * steps):
            now = lr * min(1.0, (step + 1) / steps)
            for group in optimizer.param_groups:
                group["lr"] = now
            session.begin_step(step, epochs * steps, epoch, images, now)
            output = session.model(images)
            loss = nn.functional.cross_entropy(output, target) + session.loss(output, target)
            optimizer.zero_grad()
            if gates:
                gates.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(session.model.parameters(), 1.0)
            session.after_backward()
            optimizer.step()
            if gates:
                gates.step()
            session.after_step()
    session.model.eval()


@torch.inference_mode()
def _top1(model: nn.Module, data: DataSets) -> float:
    model.eval()
    hits = [(model(images).argmax(1) == target).float() for images, target in eval_loader(data.test, 256)]
    return 100 * float(torch.cat(hits).mean())


def _data(root: str | None) -> DataSets:
    stated = {"source": "digits", "input_size": 8, "batch_size": BATCH}
    if root:
        stated = {"source": "timm", "root": root, "input_size": 32, "batch_size": BATCH, "subset": 10000}
    source = str(stated["source"])
    loaded: DataSets = (
        registry().load("data-source", source)(registry().config("data-source", source).model_validate(stated)).load()
    )
    return loaded


def _example(data: DataSets) -> Tensor:
    return torch.zeros(1, *data.test[0][0].shape)


def _units(model: nn.Module, data: DataSets) -> Units:
    return find_units(model, _example(data))


def _mean(values: Any) -> float:
    found = list(values)
    return sum(found) / len(found)


def _conditions() -> dict[str, Any]:
    return {
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "timm": timm.__version__,
        "machine": platform.machine(),
        "threads": torch.get_num_threads(),
        "command": " ".join(["python", "benchmarks/uvc_budget.py", *sys.argv[1:]]),
    }


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--seeds", type=int, default=10)
    parser.add_argument("--targets", type=float, nargs="+", default=[0.35, 0.5, 0.7, 0.9])
    parser.add_argument("--epochs", type=int, default=20)
    parser.add_argument("--dense-epochs", type=int, default=30)
    parser.add_argument("--finetune", type=int, default=10)
    parser.add_argument("--root", help="an image folder with train/ and test/ (default: digits)")
    parser.add_argument("--set", action="append", default=[], metavar="OPTION=JSON", help="an option of uvc")
    parser.add_argument("--out", type=Path)
    return parser.parse_args()


if __name__ == "__main__":
    main()
