"""Laws about backbones, the models that timm does not have."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from usdcore.construct import create
from usdcore.costs import cost
from usdcore.counting import counted_macs
from usdcore.errors import UsdcoreError
from usdcore.gates import Gating
from usdcore.plans import Base, Keep, Plan
from usdcore.runner import attach, set_mode
from usdcore.surgery import shrink
from usdcore.testing.laws import Broken, NotTried
from usdcore.testing.models import CLASSES, batch, gap, logits, randomise
from usdcore.testing.shrinking import TOLERANCE, Fixed
from usdcore.units import find_units

if TYPE_CHECKING:
    from torch import nn

    from usdcore.testing.subject import Subject


def _base(subject: Subject) -> Base:
    options: dict[str, Any] = dict(subject.options)
    shape = tuple(options.pop("input_shape", (3, 224, 224)))
    return Base(name=subject.name, kwargs=options, num_classes=CLASSES, input_shape=shape)


def _built(subject: Subject) -> nn.Module:
    try:
        return randomise(create(_base(subject))).eval()
    except UsdcoreError as error:
        raise NotTried(f"{error}: see test_timm_makes_it") from None


def made(subject: Subject) -> None:
    """It is built with `num_classes` and gives as many logits for each image."""
    base = _base(subject)
    try:
        model = create(base).eval()
    except UsdcoreError as error:
        do = "decorate a function of that name with timm.models.register_model; options are its kwargs, and input_shape"
        raise Broken(subject.where, str(error), do) from None
    found = logits(model, batch(0, 2, base.input_shape)[0])
    if tuple(found.shape) != (2, CLASSES):
        what = f"2 images and num_classes {CLASSES} give {list(found.shape)}"
        raise Broken(subject.where, what, "take num_classes, and give logits [B, num_classes]")


def units(subject: Subject) -> None:
    """usdcore finds something in it to prune."""
    found = find_units(_built(subject), torch.zeros(1, *_base(subject).input_shape))
    if not any(group.reason is None for group in found.groups.values()):
        reasons = "; ".join(sorted({str(group.reason) for group in found.groups.values()})) or "there are no units"
        raise Broken(subject.where, f"nothing can be pruned: {reasons}", "see `usdcore units` and docs/hosts.md")


def exact(subject: Subject) -> None:
    """Half of every group's entries removed: the logits are those of masking, MACs and parameters those predicted."""
    model, base = _built(subject), _base(subject)
    found = find_units(model, torch.zeros(1, *base.input_shape))
    generator, records = np.random.default_rng(0), []
    for group in found.groups.values():
        if group.kind in ("heads", "hidden") and group.reason is None:
            kept = np.sort(generator.permutation(group.size)[: max(group.size // 2, 1)])
            records.append(Keep(group=group.name, indices=tuple(kept.tolist())))
    plan = Plan(base=base, records=tuple(records))
    small, images = shrink(model, plan), batch(0, 2, base.input_shape)[0]
    keeps = {record.group: torch.zeros(found.groups[record.group].size) for record in records}
    for record in records:
        keeps[record.group][list(record.indices)] = 1.0
    predicted = cost(found, plan)
    gating = Gating()
    gating.add("kit", Fixed(keeps))
    attach(model, found, gating)
    set_mode(model, "masked")
    difference = gap(logits(small, images), logits(model, images))
    if not difference <= TOLERANCE:
        what = f"with half of its entries removed the logits differ by {difference:.1e} from masking them"
        raise Broken(subject.where, what, "report it as a bug of usdcore, with the model")
    if counted_macs(small, images[:1]) != predicted.macs:
        what = f"the cost says {predicted.macs} MACs, and torch counts {counted_macs(small, images[:1])}"
        raise Broken(subject.where, what, "report it as a bug of usdcore, with the model")
