"""Everything that has to hold of a shrunk model, each as a function of a trial. It raises where it does not."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from counting import counted_macs
from safetensors.torch import save_file
from torch import Tensor, nn
from zoo import gap

import usdcore
from usdcore.costs import cost
from usdcore.surgery import shrink
from usdcore.units import find_units

from .cases import Asked, ask
from .masking import masked
from .subject import BATCH, Subject, logits, trained

TOLERANCE = 1e-4
SAME = 1e-5
CONTROL = 100 * TOLERANCE


@dataclass
class Trial:
    """One case of one model. `folder` is where a file is left for another process to load."""

    subject: Subject
    case: str
    asked: Asked
    small: nn.Module
    folder: Path

    @cached_property
    def out(self) -> Tensor:
        """The shrunk model's logits."""
        return run(self.small, self.subject.images)

    @cached_property
    def masked_out(self) -> Tensor:
        """The masked model's logits."""
        subject = self.subject
        return run(masked(subject.model, subject.units, self.asked.plan), subject.images)


@torch.no_grad()
def run(model: nn.Module, images: Tensor) -> Tensor:
    """Logits, without a graph."""
    return logits(model(images))


def close(found: float, limit: float) -> float:
    """`found` where it is below a limit; not a number is not."""
    if not found < limit:
        msg = f"differs by {found:.1e} of the maximum"
        raise ValueError(msg)
    return found


def params(trial: Trial) -> int:
    """The parameters fall by just what was predicted."""
    predicted = cost(trial.subject.units, trial.asked.plan).params
    dense, now = (sum(p.numel() for p in m.parameters()) for m in (trial.subject.model, trial.small))
    if not predicted == now < dense:
        msg = f"{predicted} parameters predicted, {now} left of {dense}"
        raise ValueError(msg)
    return now


def macs(trial: Trial) -> int:
    """Predicted MACs are what torch counts on one image, and fewer than before. (What a model computes of parameters
    alone, as some do with tables of positions, it computes once for a batch of any size.)
    """
    units, image = trial.subject.units, trial.subject.images[:1]
    predicted = cost(units, trial.asked.plan).macs
    was = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)  # the counter does not see into it
    try:
        counted = counted_macs(copy.deepcopy(trial.small).requires_grad_(False), image)
    finally:
        torch.backends.mha.set_fastpath_enabled(was)
    if not predicted == counted < units.macs:
        msg = f"{predicted} MACs predicted, {counted} counted, {units.macs} before"
        raise ValueError(msg)
    return predicted


def sizes(trial: Trial) -> int:
    """Every group that was asked for is found again, at the size that was asked for."""
    found, units = find_units(trial.small, trial.subject.example), trial.subject.units
    plan = trial.asked.plan
    for name, kept in plan.kept_groups.items():
        group = units.groups[name]
        parents = plan.keep(group.parent or "")
        left = [i for i in kept if group.parent_of is None or parents is None or group.parent_of[i] in parents]
        owner = next(unit.branch for unit in units.all if group in unit.groups)
        if owner is not None and owner.name in plan.drops:
            continue
        now = found.groups[name].size if name in found.groups else "none"
        if now != len(left):
            msg = f"{name} has {now} entries instead of {len(left)}"
            raise ValueError(msg)
    return len(plan.records)


def against_masked(trial: Trial) -> float:
    """Shrunk equals masked."""
    return close(gap(trial.out, trial.masked_out), TOLERANCE)


def unfused(trial: Trial) -> float | str:
    """The same plan applies with attention written out, and gives what the masked model gives."""
    subject, plan = trial.subject, trial.asked.plan
    if not subject.entry.has_two_ways:
        return "one way"
    small = shrink(subject.unfused, plan, subject.example)
    there = masked(subject.unfused, subject.unfused_units, plan)
    return close(gap(run(small, subject.images), run(there, subject.images)), TOLERANCE)


def control(trial: Trial) -> float | str:
    """As many other entries give something else, far beyond the tolerance. (A few others are tried: a model that has
    lost all that leads from the images to its class token is the same whatever else it has lost.)
    """
    subject, found = trial.subject, []
    plans = (ask(subject.units, trial.case, _seed(trial.case) + seed).plan for seed in range(1, 6))
    for wrong in plans:
        if wrong.records != trial.asked.plan.records:
            small = shrink(subject.model, wrong, subject.example)
            found.append(gap(run(small, subject.images), trial.masked_out))
            if found[-1] > CONTROL:
                return found[-1]
    if found:
        msg = f"wrong indices differ by {max(found):.1e} of the maximum only"
        raise ValueError(msg)
    return "there are no others"


def names(trial: Trial) -> int:
    """State-dict names stay; those of removed branches go."""
    dense, now = set(trial.subject.model.state_dict()), set(trial.small.state_dict())
    if now - dense or (not trial.asked.plan.drops and now != dense):
        msg = f"{sorted(now ^ dense)[0]} is in one of the state dicts only"
        raise ValueError(msg)
    return len(now)


def batch(trial: Trial) -> float:
    """A batch of another size."""
    images = trial.subject.entry.images(trial.subject.is_small, BATCH + 1)
    return close(gap(run(trial.small, images)[:1], run(trial.small, images[:1])), SAME)


def training(trial: Trial) -> int:
    """A step reaches every parameter that it reaches in the dense model."""
    found = trained(trial.small, trial.subject.images)
    left = {name for name, _ in trial.small.named_parameters()}
    missing = sorted((trial.subject.trained & left) ^ found)
    if missing:
        msg = f"{missing[0]} has a gradient in one of dense and shrunk model only"
        raise ValueError(msg)
    return len(found)


def features(model: nn.Module, subject: Subject, reference: Tensor) -> float | str:
    """`forward_features` and `forward_head` make up the forward, where there are both."""
    if not hasattr(model, "forward_features") or not hasattr(model, "forward_head"):
        return "none"
    with torch.no_grad():
        found = model.forward_features(subject.images)  # type: ignore[operator]
        if not isinstance(found, Tensor) and type(model).__name__ in ("CrossVit", "CoaT"):
            return "runs"  # a feature of several streams
        return close(gap(logits(model.forward_head(found)), reference), SAME)  # type: ignore[operator]


def classes(model: nn.Module, subject: Subject, reference: Tensor) -> str:
    """`reset_classifier` gives a head of another size."""
    if not hasattr(model, "reset_classifier"):
        return "none"
    model = copy.deepcopy(model)
    model.reset_classifier(5)  # type: ignore[operator]
    found = run(model, subject.images)
    if found.shape != (BATCH, 5):
        msg = f"the head gives {tuple(found.shape)}"
        raise ValueError(msg)
    return "runs"


def export(model: nn.Module, subject: Subject, reference: Tensor) -> float:
    """torch.export without strictness."""
    return _exported(model, subject, reference, strict=False)


def export_strict(model: nn.Module, subject: Subject, reference: Tensor) -> float:
    """torch.export through dynamo."""
    return _exported(model, subject, reference, strict=True)


def _exported(model: nn.Module, subject: Subject, reference: Tensor, strict: bool) -> float:
    torch._dynamo.reset()
    with torch.no_grad():
        program = torch.export.export(model, (subject.images,), strict=strict)
    return close(gap(run(program.module(), subject.images), reference), SAME)


def compiled(model: nn.Module, subject: Subject, reference: Tensor) -> float:
    """torch.compile, traced by dynamo and autograd."""
    torch._dynamo.reset()
    found = run(torch.compile(model, backend="aot_eager"), subject.images)  # type: ignore[arg-type]
    torch._dynamo.reset()
    return close(gap(found, reference), SAME)


def saved(trial: Trial) -> str:
    """Leave a file for `reload`: usdcore's own where timm makes the base, else the weights and the plan."""
    subject, path = trial.subject, trial.folder / f"{trial.subject.entry.name}-{trial.case}.safetensors"
    if subject.base is not None:
        usdcore.save(trial.small, trial.asked.plan, path)
    else:
        save_file({name: t.clone() for name, t in trial.small.state_dict().items()}, path)
    save_file({"logits": trial.out.contiguous()}, path.with_suffix(".expected"))
    note = {"entry": subject.entry.name, "is_small": subject.is_small, "plan": trial.asked.plan.model_dump_json()}
    path.with_suffix(".json").write_text(json.dumps(note))
    return "written"


OF_TRIAL: dict[str, Callable[[Trial], Any]] = {
    "params": params,
    "macs": macs,
    "sizes": sizes,
    "masked": against_masked,
    "unfused": unfused,
    "control": control,
    "names": names,
    "batch": batch,
    "training": training,
    "reload": saved,
}
#: These a dense model may fail as well; then nothing is asked of the shrunk one.
OF_MODEL: dict[str, Callable[[nn.Module, Subject, Tensor], Any]] = {
    "features": features,
    "classes": classes,
    "export": export,
    "export_strict": export_strict,
    "compile": compiled,
}
QUICK = ("params", "macs", "sizes", "masked", "unfused", "control", "names", "batch", "training", "features", "classes")
ALL = (*OF_TRIAL, *OF_MODEL)
SLOW = ("export_strict", "compile")


def prepare(subject: Subject, case: str) -> Asked:
    """What a case asks of a model."""
    return ask(subject.units, case, _seed(case), subject.base)


def _seed(case: str) -> int:
    return 100 * len(case) + ord(case[0])
