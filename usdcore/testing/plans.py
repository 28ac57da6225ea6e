"""Laws about what leaves the run: the saved file, and the exported program."""

from __future__ import annotations

import copy
import tempfile
import warnings
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from usdcore.artifact import load_with_plan, save
from usdcore.errors import UsdcoreError
from usdcore.hooks import registry
from usdcore.runner import detach, set_mode
from usdcore.testing.laws import Broken
from usdcore.testing.models import batch, gap, logits
from usdcore.testing.trial import Trial

if TYPE_CHECKING:
    from usdcore.testing.subject import Subject


def survives(subject: Subject) -> None:
    """Saved and loaded after one phase and after a second on the smaller model, it is the same model with the same
    plan; the records name the distribution that has the plugin.
    """
    trial = Trial(subject, subject.models[0]).run()
    _require_round_trip(trial, "after a phase")
    _require_names(trial)
    trial.run()
    _require_round_trip(trial, "after a second phase on the smaller model")


def _require_round_trip(trial: Trial, when: str) -> None:
    model, plan, images = trial.session.model, trial.session.plan, batch(4)[0]
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.safetensors"
        try:
            save(model, plan, path)
            loaded, read = load_with_plan(path)
        except UsdcoreError as error:
            do = "records() must hold what rebuild() needs, and rebuild() give a gate with the same parameters"
            raise Broken(trial.where, f"what was saved {when} can't be loaded: {error}", do) from None
    if read.records != plan.records:
        raise Broken(trial.where, f"the plan read is not the one that was saved {when}", "keep records plain JSON")
    difference = gap(logits(loaded, images), logits(model, images))
    if not difference <= 1e-6:
        what = f"the model loaded {when} gives logits that differ by {difference:.1e}"
        do = "what a gate needs beside its parameters and buffers belongs into the record's config"
        raise Broken(trial.where, what, do)


def _require_names(trial: Trial) -> None:
    for record in trial.session.plan.attached.values():
        owner = registry().plugin("strategy", record.plugin)
        if (record.distribution, record.version) != (owner.distribution, owner.version):
            what = f"the record of {record.plugin} at {record.site} says {record.distribution} {record.version}"
            do = f"name what users install, {owner.distribution} {owner.version}: importlib.metadata.version tells"
            raise Broken(trial.where, what, do)


def exports(subject: Subject) -> None:
    """torch.export takes what is left without its gates, and with them masked; the program gives the same logits."""
    trial = Trial(subject, subject.models[0]).run()
    bare = copy.deepcopy(trial.session.model).eval()
    gates = detach(bare)
    candidates = [("without gates", bare)]
    if gates is not None:
        gated = copy.deepcopy(trial.session.model).eval()
        set_mode(gated, "masked")
        candidates.append(("with its gates masking", gated))
    images = batch(5, 2)[0]
    for how, model in candidates:
        wanted = logits(model, images)
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # torch's own
                program = torch.export.export(model, (images,), strict=False).module()
        except Exception as error:  # whatever torch raises for what it can't trace
            what = f"{how}, torch.export gave {type(error).__name__}: {str(error).splitlines()[0][:200]}"
            do = "a gate must be tensor operations: no numpy, no .item() and no branch on a value in draw()"
            raise Broken(trial.where, what, do) from None
        difference = gap(program(images).detach(), wanted)
        if not difference <= 1e-4:
            what = f"{how}, the exported program's logits differ by {difference:.1e}"
            raise Broken(trial.where, what, "draw from the stream and parameters alone")
