"""A dry run of a recipe: everything that can be known without data or training."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from usdcore.counting import counted_macs
from usdcore.engine.amounts import BACKWARD
from usdcore.engine.memory import counted
from usdcore.engine.preflight import locating, mistakes_at, notes, preflight, try_out
from usdcore.engine.random_control import require_installed, why_not
from usdcore.engine.setup import Strategies, build_model, make_base, make_budget
from usdcore.engine.timed import require_static
from usdcore.plans import Plan
from usdcore.session import Session
from usdcore.teachers import no_dense

if TYPE_CHECKING:
    from collections.abc import Iterator

    from usdcore.recipe import Recipe
    from usdcore.recipe.tree import Node
    from usdcore.strategy import Strategy


def dry_run(recipe: Recipe, written: Node | None = None) -> dict[str, Any]:
    """Units, costs and phases, and notes on what is not on this machine.

    `written` (`usdcore.recipe.read_recipe`) gives mistakes their lines. Errors: as a run's, for the model, its own
    weights, the optimizers, the strategies and the budget. timm's pretrained weights are not fetched. What the first
    phases would remove is still there when the strategies that are new in later ones are looked at.
    """
    preflight(recipe, written)
    base = make_base(recipe.model, recipe.data.input_size, recipe.data.channels)
    with locating(("model",), written):
        model = build_model(base, recipe.model.model_copy(update={"pretrained": False}))
        session = Session(model, torch.zeros(1, *base.input_shape), make_budget(recipe.budget), Plan(base=base))
    try_out(model, base.input_shape, recipe, written)
    session.is_dry, session.load_dense = True, no_dense
    phases = list(_phases(recipe, session, written))
    _require_controls(recipe, session, written)
    return {
        "recipe": recipe.name,
        "model": base.name,
        "input_size": base.input_shape[1],
        "dense": {"macs": session.dense.macs, "params": session.dense.params},
        "attention": len(session.units.attention),
        "ffn": len(session.units.ffn),
        "blocks": len(session.units.blocks),
        "budget": _budget(recipe, session),
        "phases": phases,
        "memory": counted(recipe, model, session.teachers).as_json(),
        "notes": notes(recipe),
    }


def _require_controls(recipe: Recipe, session: Session, written: Node | None) -> None:
    """Errors: random gates are to stand in for gates that there are not, or that they can't take the place of."""
    if "random" not in recipe.controls:
        return
    place = ("controls", recipe.controls.index("random"))
    with locating(place, written):
        require_installed()
    why = why_not(session.gating, session.units)
    if why:
        raise mistakes_at([(place, why)], written)


def _budget(recipe: Recipe, session: Session) -> dict[str, Any]:
    """The target as a share, and in MACs or parameters where it is one of these."""
    metric, target = recipe.budget.metric, recipe.budget.target
    cost = None if metric == "latency" else round(target * session.dense_total)
    return {"metric": metric, "target": target, "cost": cost}


def _phases(recipe: Recipe, session: Session, written: Node | None) -> Iterator[dict[str, Any]]:
    """Each phase; one that brings new strategies begins with them on the whole model."""
    strategies, share = Strategies(), 1.0
    for index, phase in enumerate(recipe.phases):
        seen = set(strategies.made)
        named = strategies.of(phase.strategies)
        new = [strategy for strategy in named if strategy.config.use not in seen]
        is_first = session.load_dense is not None and any(strategy.compresses for strategy in named)
        if is_first:
            session.load_dense = None  # from here on there is a dense model
        if new:
            with locating(("phases", index), written):
                session.begin_phase(new)
                if recipe.budget.metric == "latency":
                    require_static(session)
        least = session.least() if is_first else None
        yield {
            "name": phase.name,
            "epochs": phase.epochs,
            "strategies": [strategy.config.use for strategy in named],
            "least": least,
            "macs_per_image": _training_macs(session, named, share),
        }
        if is_first:
            share = session.budget.target
    made = strategies.made
    if made and session.budget.target < 1 and not any(strategy.shrinks for strategy in made.values()):
        text = f"none of the strategies ({', '.join(sorted(made))}) removes anything; name one that does as well"
        raise mistakes_at([(("phases",), text)], written)


def _training_macs(session: Session, named: list[Strategy], share: float) -> int:
    """Of a training step, for each image: forward and backward of the model, whole at first and then `share` of it,
    with its gates, and the forward of each teacher.
    """
    gates = session.gating.count_macs() if session.gating is not None and named else 0
    keys = sorted({key for strategy in named for key in strategy.learns_from})
    dense, example = session.dense.macs, session.example_inputs.new_zeros(session.example_inputs.shape, device="cpu")
    taught = [dense if key == "dense" else counted_macs(session.teachers[key].model, example) for key in keys]
    return (1 + BACKWARD) * (round(share * dense) + gates) + sum(taught)
