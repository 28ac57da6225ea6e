"""A dry run of a recipe: everything that can be known without data or training."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from usdcore.artifact import create
from usdcore.engine.setup import Strategies, make_base, make_budget
from usdcore.plans import Plan
from usdcore.session import Session

if TYPE_CHECKING:
    from usdcore.recipe import Recipe

#: Bytes per parameter in training: fp32 weight, gradient, AdamW's two moments.
TRAINING_BYTES = 16


def dry_run(recipe: Recipe) -> dict[str, Any]:
    """Units, costs and phases. Errors: as a run's, for the model, its strategies and the budget."""
    base = make_base(recipe.model, recipe.data.input_size, recipe.data.channels)
    model = create(base)
    session = Session(model, torch.zeros(1, *base.input_shape), make_budget(recipe.budget), Plan(base=base))
    strategies = Strategies()
    phases: list[dict[str, Any]] = []
    for phase in recipe.phases:
        named = strategies.of(phase.strategies)
        least = None
        if named and not any(p["strategies"] for p in phases):
            session.begin_phase(named)
            least = session.least()
        phases.append(
            {"name": phase.name, "epochs": phase.epochs, "strategies": [s.config.use for s in named], "least": least}
        )
    return {
        "recipe": recipe.name,
        "model": base.name,
        "input_size": base.input_shape[1],
        "dense": {"macs": session.dense.macs, "params": session.dense.params},
        "attention": len(session.units.attention),
        "ffn": len(session.units.ffn),
        "blocks": len(session.units.blocks),
        "budget": {"metric": session.budget.metric, "target": session.budget.target},
        "phases": phases,
        "memory_bytes": TRAINING_BYTES * session.dense.params,
    }
