"""Laws about what is removed and skipped: masking equals removing, costs are counted, the budget is met."""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING, Any

import torch

from usdcore.costs import Tree, cost
from usdcore.counting import counted_macs
from usdcore.errors import UsdcoreError
from usdcore.gates import Draw, Gate, Gating
from usdcore.runner import attach, detach, gating_of, set_mode
from usdcore.testing.laws import Broken, NotTried
from usdcore.testing.models import batch, first_again, gap, logits
from usdcore.testing.trial import Trial
from usdcore.units.types import is_width

if TYPE_CHECKING:
    from torch import Tensor, nn

    from usdcore.gates import ForwardState
    from usdcore.plans import Plan
    from usdcore.testing.subject import Subject
    from usdcore.units.types import Units

TOLERANCE = 1e-4
MARGIN = 0.005
"""Of the dense model, by which a budget may be missed."""


class Fixed(Gate):
    """Given factors at given sites."""

    def __init__(self, keeps: dict[str, Tensor]) -> None:
        super().__init__()
        self.keeps, self.sites = keeps, tuple(keeps)

    def draw(self, x_BNC: Tensor | None, state: ForwardState) -> dict[str, Draw]:
        """The same ones always."""
        return {site: Draw(keep) for site, keep in self.keeps.items()}


def masked(subject: Subject, model_name: str) -> None:
    """Zeros at what the plan removes give the logits of the shrunk model; skipping gives those of masking."""
    trial = Trial(subject, model_name).begin().train()
    before, units = _after_decide(trial)
    plan = trial.session.plan.without_gates()
    images = batch(2)[0]
    if plan.records:
        if any(is_width(name) for name in plan.kept_groups):
            raise NotTried("it cuts the width of the stream, which no mask stands for")
        _require_same_as_masked(trial, before[-1], units, images)
    gating = trial.session.gating
    if gating is not None and any(gate.scope != "static" for gate in gating.all()):
        _require_same_when_skipping(trial, images)
    elif not plan.records:
        raise NotTried("it removes nothing and skips nothing in these steps")


def _after_decide(trial: Trial) -> tuple[list[nn.Module], Units]:
    """End the phase; the model as each strategy left it when it had decided, and the units it had."""
    kept: list[nn.Module] = []
    units = trial.session.units
    for strategy in trial.strategies:
        strategy.decide = _watched(strategy.decide, trial, kept)  # type: ignore[method-assign]
    trial.end()
    for strategy in trial.strategies:
        del strategy.__dict__["decide"]
    return kept, units


def _watched(decide: Any, trial: Trial, kept: list[nn.Module]) -> Any:
    def watched() -> Any:
        decision = decide()
        kept.append(copy.deepcopy(trial.session.model))
        detach(kept[-1])
        return decision

    return watched


def _require_same_as_masked(trial: Trial, host: nn.Module, units: Units, images: Tensor) -> None:
    small = copy.deepcopy(trial.session.model)
    detach(small)
    found, dense = logits(small, images), logits(host, images)
    gating = Gating()
    gating.add("kit", Fixed(_keeps(trial.session.plan, units)))
    attach(host, units, gating)
    set_mode(host, "masked")
    wanted = logits(host, images)
    difference = gap(found, wanted)
    if not difference <= TOLERANCE:
        what = f"zeros at what was decided give logits that differ by {difference:.1e} from those of the shrunk model"
        do = "after decide() nothing may change weights; a gate's factor must be 1 where it says that it keeps"
        raise Broken(trial.where, what, do)
    if gap(found, dense) < 100 * TOLERANCE:
        raise NotTried("what it removes changes so little that this shows nothing; give it options that remove more")


def _keeps(plan: Plan, units: Units) -> dict[str, Tensor]:
    """Factors of 0 at what a plan in the units' own coordinates removes."""
    keeps = {name: torch.zeros(()) for name in plan.drops}
    for name, indices in plan.kept_groups.items():
        keeps[name] = torch.zeros(units.groups[name].size)
        keeps[name][list(indices)] = 1.0
    return keeps


def _require_same_when_skipping(trial: Trial, images: Tensor) -> None:
    model = trial.session.model
    set_mode(model, "masked")
    wanted = logits(model, images)
    set_mode(model, "skipping")
    found = logits(model, images)
    set_mode(model, "auto")
    difference = gap(found, wanted)
    if not difference <= TOLERANCE:
        what = f"skipping and masking give logits that differ by {difference:.1e}"
        raise Broken(trial.where, what, "a gate must draw the same in both: from the stream and its own parameters")


def counted(subject: Subject) -> None:
    """What the session says is executed is what torch counts over a skipping forward, gate networks included."""
    trial = Trial(subject, subject.models[0]).run()
    session, images = trial.session, batch(3, 6)[0]
    first_again(session.model)
    said = session.execution(lambda: iter([images])).macs * len(images)
    first_again(session.model)
    count = counted_macs(session.model.eval(), images)
    if round(said) != count:
        what = f"the cost says {round(said)} MACs for {len(images)} images, and torch counts {count}"
        do = "macs() of a gate must be its multiply-accumulates per image; `keep` of a Draw is what is computed"
        raise Broken(trial.where, what, do)
    bare = copy.deepcopy(session.model)
    detach(bare)
    params = sum(p.numel() for p in bare.parameters())
    if params != cost(session.units).params:
        what = f"the cost says {cost(session.units).params} parameters, and the model has {params}"
        raise Broken(trial.where, what, "put parameters of your own into a gate, not into the model")


def budget(subject: Subject) -> None:
    """After a phase and calibration, what is left costs what the budget says, as near as single entries allow."""
    trial = Trial(subject, subject.models[0]).begin().train()
    if not trial.own.shrinks:
        raise NotTried("it makes nothing smaller")
    session, wanted = trial.session, trial.session.budget.target
    before = session.units
    try:
        session.end_phase(trial.calibration)
        session.calibrate(trial.calibration)
    except UsdcoreError as error:
        raise Broken(
            trial.where, f"the phase ends with an error: {error}", "decide so that the budget is met"
        ) from None
    is_macs, total = session.budget.metric == "macs", session.dense_total
    spent = session.execution(trial.calibration).macs if is_macs else cost(session.units).params
    share, grain = spent / total, _grain(trial, before)
    above = 0.0 if session.gating is None else grain  # a threshold may be nearest on either side
    if not wanted - MARGIN - grain <= share <= wanted + MARGIN + above:
        what = f"{share:.4f} of the dense model is left of the {wanted:g} that were asked for"
        do = "give decide() scores for as many entries as it takes, or put gates: a budget needs a choice"
        raise Broken(trial.where, what, do)


def _grain(trial: Trial, units: Units) -> float:
    """The largest single thing that was decided about, as a share of the dense model: a budget is met within it."""
    session = trial.session
    tree, plan = Tree(units, session.budget.metric), session.plan.without_gates()
    sizes = [tree.entry_cost(group) for name in plan.kept_groups if (group := units.group(name)) is not None]
    gating = gating_of(session.model)
    if gating is not None:  # one branch, for one of the calibration images
        images = sum(len(images) for images in trial.calibration())
        sizes += [branch.macs // images for branch in session.units.branches.values()]
    elif not plan.kept_groups:
        sizes += [units.branches[name].macs for name in plan.drops]
    return max(sizes, default=0) / session.dense_total
