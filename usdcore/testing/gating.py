"""Laws about gates: neutral ones change nothing, and each decides about its sites in a way that the model obeys."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from usdcore.check import NotNeutral, PassedBy, outputs
from usdcore.errors import UsdcoreError
from usdcore.gates import Draw, Reducer, TokenDraw
from usdcore.plans import TOKENS, is_token_site
from usdcore.runner import CHILD, detach
from usdcore.testing.laws import Broken, NotTried
from usdcore.testing.models import INPUT, batch, build, gap, logits
from usdcore.testing.trial import Trial

if TYPE_CHECKING:
    from torch import Tensor, nn

    from usdcore.gates import ForwardState, Gate
    from usdcore.testing.subject import Subject

TOLERANCE = 1e-5


def neutral(subject: Subject, model_name: str) -> None:
    """With neutral gates, and when they are taken off again, a model gives its own logits in both modes."""
    host, trial = build(model_name), Trial(subject, model_name)
    wanted = outputs(host, INPUT)
    try:
        trial.attach()
    except NotNeutral as error:
        do = "neutral_draws() must give factors of exactly 1, and attach() leave the model's forward alone"
        raise Broken(trial.where, str(error), do) from None
    except PassedBy as error:
        raise NotTried(f"{error}: see test_gates_are_read") from None
    except UsdcoreError as error:
        do = "attach to what this model has, or name the models that it is for: conformance(..., models=[...])"
        raise Broken(trial.where, f"attach() refused: {error}", do) from None
    model = trial.session.model
    _require_own_weights(trial.where, model, host)
    for gate in trial.own.gates.values():
        gate.neutral()
    _require_equal(trial.where, outputs(model, INPUT), wanted, "with every gate neutral")
    detach(model)
    _require_equal(trial.where, outputs(model, INPUT), wanted, "after its gates were taken off")


def _require_own_weights(where: str, model: nn.Module, host: nn.Module) -> None:
    now = {name: tensor for name, tensor in model.state_dict().items() if not name.startswith(f"{CHILD}.")}
    changed = [name for name, tensor in host.state_dict().items() if name not in now or not now[name].equal(tensor)]
    if changed:
        do = "read weights there, and change them in after_step() or decide() only"
        raise Broken(where, f"attach() changed the model's own {changed[0]}", do)


def _require_equal(where: str, found: dict[str, Tensor], wanted: dict[str, Tensor], when: str) -> None:
    for mode, output in found.items():
        difference = gap(output, wanted[mode])
        if not difference <= TOLERANCE:
            what = f"the logits in {mode} mode differ by {difference:.1e} of their maximum from the host's, {when}"
            do = "neutral_draws() must give factors of exactly 1; undo what attach() does by site.at_end(action)"
            raise Broken(where, what, do)


def read(subject: Subject) -> None:
    """In both modes each gate draws for all of its sites: in evaluation 0 or 1, of a shape that fits; and a 0 at any
    one of its sites changes the logits.
    """
    trial = Trial(subject, subject.models[0])
    try:
        trial.attach()
    except PassedBy as error:
        do = "put the gate at a site that the model passes in training and in evaluation"
        raise Broken(trial.where, str(error), do) from None
    except UsdcoreError as error:
        raise NotTried(f"it was not attached: {error}: see test_neutral_equals_original") from None
    gates = trial.own.gates
    if not gates:
        raise NotTried("it puts no gates in the model")
    images = batch(0, 5)[0]
    model = trial.session.model
    for training in (True, False):
        torch.manual_seed(0)
        trial.session.begin_step(0, subject.steps, images=images, lr=1e-3)
        model.train(training)(images)
        for name, gate in gates.items():
            _require_drawn(trial, name, gate, is_hard=not training, size=len(images))
    for gate in gates.values():
        gate.neutral()
    wanted = logits(model, images)
    for name, gate in gates.items():
        for site in () if isinstance(gate, Reducer) else gate.sites:
            if gap(_without(trial, gate, site, images), wanted) < 1e-6:
                do = "a gate that taps a block must stand at that block or a later one; a gate without a tap anywhere"
                raise Broken(trial.where, f"what the gate {name!r} decides about {site} never acts", do)


def _without(trial: Trial, gate: Gate, site: str, images: Tensor) -> Tensor:
    """The logits where one gate gives 0 at one of its sites (tokens: to the first and the last), and 1 at others."""
    blocks = {block.name: block for block in trial.session.units.blocks}
    blocks |= {branch.name: block for block in blocks.values() for branch in block.branches}

    def draw(x_BNC: Tensor | None, state: ForwardState) -> dict[str, Draw]:
        if not is_token_site(site):
            return gate.neutral_draws() | {site: Draw(torch.zeros(()))}
        tokens = blocks[site.removesuffix(TOKENS)].num_tokens if x_BNC is None else x_BNC.shape[1]
        keep = torch.ones(len(images), tokens or 2)
        keep[:, [0, -1]] = 0.0
        return gate.neutral_draws() | {site: TokenDraw(keep)}

    gate.neutral(False)
    gate.draw = draw  # type: ignore[method-assign]
    try:
        return logits(trial.session.model, images)
    finally:
        gate.__dict__.pop("draw")
        gate.neutral()


def _require_drawn(trial: Trial, name: str, gate: Gate, is_hard: bool, size: int) -> None:
    gating, mode = trial.session.gating, "evaluation" if is_hard else "training"
    assert gating is not None
    held = gating.state.static if gate.scope == "static" else gating.state.dynamic
    blocks = {block.name: block.units for block in trial.session.units.blocks}
    for site in gate.sites:
        if is_token_site(site):
            _require_tokens_drawn(trial, name, gate, site, is_hard)
            continue
        for counted in blocks.get(site, (site,)):
            if counted not in held:
                what = f"the gate {name!r} names {site} among its sites, and draws nothing for it in {mode} mode"
                raise Broken(trial.where, what, "draw() must give a Draw for each site in `sites`")
            keep = held[counted]
            group = trial.session.units.group(site)
            inner = keep.shape if group is None else keep.shape[:-1] if keep.ndim and keep.shape[-1] != 1 else ()
            is_whole = group is None or keep.ndim == 0 or keep.shape[-1] == group.size
            if not is_whole or tuple(inner) not in ((), (size,)):
                what = f"the gate {name!r} draws {list(keep.shape)} for {site} in {mode} mode, of {size} images"
                raise Broken(trial.where, what, "a branch takes [] or [B], a group of n entries [n] or [B, n]")
            if is_hard and not bool(((keep == 0) | (keep == 1)).all()):
                what = f"the gate {name!r} draws a factor other than 0 and 1 for {site} in evaluation mode"
                raise Broken(trial.where, what, "decide in evaluation: what is skipped there is not computed")


def _require_tokens_drawn(trial: Trial, name: str, gate: Gate, site: str, is_hard: bool) -> None:
    gating, mode = trial.session.gating, "evaluation" if is_hard else "training"
    assert gating is not None
    draws = gating.state.draws.get(site, [])
    if site not in gating.state.asked or not (draws or isinstance(gate, Reducer)):
        what = f"the gate {name!r} names {site} among its sites, and draws nothing for it in {mode} mode"
        raise Broken(trial.where, what, "draw() must give a TokenDraw for each token site in `sites`")
    if is_hard and not all(bool(((draw.keep == 0) | (draw.keep == 1)).all()) for draw in draws):
        what = f"the gate {name!r} draws a factor other than 0 and 1 for {site} in evaluation mode"
        raise Broken(trial.where, what, "decide in evaluation: what is left out there is not computed")
