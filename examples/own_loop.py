"""A training loop of your own, with a strategy of usdcore in it: no recipe, no engine, just `usdcore.Session`.

Trains a small ViT on scikit-learn's handwritten digits, learns which heads, neurons and branches to remove, cuts them
out, fine-tunes and saves. Run it with ``python examples/own_loop.py``; it needs ``pip install "usdcore[quickstart]"``.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from pathlib import Path

import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn

import usdcore
from usdcore.artifact import create
from usdcore.hooks import registry

BASE = usdcore.Base(
    name="vit_tiny_patch16_224",
    kwargs={
        "img_size": 8,
        "in_chans": 1,
        "patch_size": 2,
        "embed_dim": 48,
        "depth": 3,
        "num_heads": 4,
        "class_token": False,
        "global_pool": "avg",
    },
    num_classes=10,
    input_shape=(1, 8, 8),
)
BATCH = 64


def digits() -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Training images [N, 1, 8, 8] and labels [N], then those to evaluate on."""
    data, labels = load_digits(return_X_y=True)
    images = torch.tensor(data, dtype=torch.float32).view(-1, 1, 8, 8) / 8 - 1
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(0))
    images, labels = images[order], torch.tensor(labels)[order]
    return images[:1440], labels[:1440], images[1440:], labels[1440:]


def train(session: usdcore.Session, images: Tensor, labels: Tensor, epochs: int, lr: float) -> None:
    """Your loop. What usdcore adds to it is marked."""
    steps = len(images) // BATCH
    groups = [{"params": [p for n, p in session.model.named_parameters() if not n.startswith("usdcore.")]}]
    groups += [  # usdcore: what strategies train, at their own rates
        {"params": own.parameters, "lr": lr * own.lr_mult if own.lr is None else own.lr, "weight_decay": 0.0}
        for own in session.parameter_groups
    ]
    optimizer = torch.optim.AdamW(groups, lr=lr)
    for epoch in range(epochs):
        session.model.train()
        for step, chosen in enumerate(torch.randperm(len(images))[: steps * BATCH].split(BATCH)):
            number = epoch * steps + step
            session.begin_step(number, epochs * steps, epoch, images[chosen], lr=lr)  # usdcore
            output = session.model(images[chosen])
            task = nn.functional.cross_entropy(output, labels[chosen])
            loss = session.task_weight * task + session.loss(output, labels[chosen])  # usdcore
            optimizer.zero_grad()
            loss.backward()
            session.after_backward()  # usdcore
            optimizer.step()
            session.after_step()  # usdcore


@torch.no_grad()
def top1(model: nn.Module, images: Tensor, labels: Tensor) -> float:
    """Percent of the images that are classified right."""
    return 100 * float((model.eval()(images).argmax(1) == labels).float().mean())


def main(epochs: int, out: Path) -> dict[str, float]:
    """Dense training, a search, a fine-tune; returns what came of it."""
    torch.manual_seed(0)
    images, labels, test_images, test_labels = digits()

    def calibration() -> Iterator[Tensor]:
        yield from images[:512].split(BATCH)

    budget = usdcore.Budget("macs", 0.6, batch_size=BATCH)
    session = usdcore.Session(create(BASE), images[:1], budget, usdcore.Plan(base=BASE))
    session.begin_phase([])
    train(session, images, labels, epochs, lr=3e-3)
    dense = {"macs": session.units.macs, "top1": top1(session.model, test_images, test_labels)}

    config = registry().config("strategy", "usdc-static")(heads=True, hidden=True, branches=True, lr=0.03)
    strategy = registry().load("strategy", "usdc-static")(config)
    session.begin_phase([strategy])
    train(session, images, labels, epochs, lr=5e-4)
    end = session.end_phase(calibration)  # decides, and really shrinks: session.model is another model now
    session.begin_phase([])
    train(session, images, labels, epochs, lr=1e-3)

    usdcore.save(session.model, session.plan, out)
    small = usdcore.load(out)
    return {
        "dense_top1": dense["top1"],
        "top1": top1(small, test_images, test_labels),
        "macs": session.units.macs / dense["macs"],
        "searched": end.searched or 0.0,
    }


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="usdcore.Session in a training loop of your own")
    parser.add_argument("--epochs", type=int, default=12, help="of each phase")
    parser.add_argument("--out", type=Path, default=Path("model.safetensors"))
    arguments = parser.parse_args()
    for key, value in main(arguments.epochs, arguments.out).items():
        print(f"{key:12} {value:.4g}")
