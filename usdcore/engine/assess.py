"""A saved model on real images: top-1 and executed MACs over batch sizes, scopes and orders, and along the
threshold's dial.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from usdcore.artifact import create, load_with_plan
from usdcore.costs import Cost, cost
from usdcore.engine.evaluate import Order, calibration_batches, evaluate, evaluation_loader, set_scope
from usdcore.engine.setup import autocast, make_budget
from usdcore.errors import UsdcoreError
from usdcore.measure import set_threshold
from usdcore.runner import gating_of
from usdcore.session import Session
from usdcore.units import find_units

if TYPE_CHECKING:
    from pathlib import Path

    from usdcore.engine.data import DataSets
    from usdcore.engine.evaluate import Evaluation
    from usdcore.plans import Base
    from usdcore.recipe import Recipe

#: How far from the target a calibrated threshold may end before the target counts as out of reach.
REACH = 0.005


def dense_cost(base: Base) -> Cost:
    """What the base model costs; no weights are made."""
    with torch.device("meta"):
        model = create(base)
    return cost(find_units(model, torch.zeros(1, *base.input_shape, device="meta")))


@dataclass
class Assessor:
    """Evaluates one model under a recipe's conditions."""

    session: Session
    recipe: Recipe
    data: DataSets
    device: torch.device

    @classmethod
    def of_file(cls, path: Path, recipe: Recipe, data: DataSets, device: torch.device) -> Assessor:
        """A model loaded from its one file. Errors: those of `load`, and a model for other images or classes."""
        model, plan = load_with_plan(path, device)
        assert plan.base is not None
        here = (data.in_chans, recipe.data.input_size, recipe.data.input_size)
        if plan.base.input_shape != here or plan.base.num_classes != data.num_classes:
            msg = (
                f"{path}: a model for {plan.base.num_classes} classes of images {list(plan.base.input_shape)}, but the "
                f"recipe's data have {data.num_classes} classes of {list(here)}; the recipe is that of another run"
            )
            raise UsdcoreError(msg)
        example = torch.zeros(1, *plan.base.input_shape)
        session = Session(model, example, make_budget(recipe.budget), plan, dense_cost(plan.base))
        session.amp = autocast(device, recipe.train.amp)
        return cls(session, recipe, data, device)

    def at(self, batch_size: int, scope: str | None = None, order: Order = "shuffled") -> Evaluation:
        """Top-1 and executed MACs at a batch size; scope defaults to the recipe's."""
        wanted = scope or self.recipe.budget.scope
        gating = gating_of(self.session.model)
        set_scope(gating, "sample" if wanted == "sample" else "batch")
        loader = evaluation_loader(self.data.test, batch_size, self.recipe.seed, order, self.recipe.data.workers)
        found = evaluate(self.session.model, self.session.units, loader, autocast(self.device, self.recipe.train.amp))
        set_scope(gating, "sample" if self.recipe.budget.scope == "sample" else "batch")
        return found

    def row(self, batch_size: int, scope: str | None = None, order: Order = "shuffled") -> dict[str, Any]:
        """The same as a row of `result.json`'s `eval`."""
        found = self.at(batch_size, scope, order)
        return {
            "batch_size": batch_size,
            "scope": scope or self.recipe.budget.scope,
            "order": order,
            "top1": found.top1,
            "executed_macs": found.execution.macs,
            "images": found.execution.num_images,
        }

    def rows(self) -> list[dict[str, Any]]:
        """The recipe's batch sizes, then the promised one with class-sorted batches and with a decision per sample."""
        own = self.recipe.budget.batch_size
        rows = [self.row(size) for size in sorted({*self.recipe.evaluate.batch_sizes, own})]
        if gating_of(self.session.model) is not None:
            rows.append(self.row(own, order="sorted"))
            if self.recipe.budget.scope == "batch":
                rows.append(self.row(own, scope="sample"))
        return rows

    def turn_to(self, target: float) -> dict[str, Any]:
        """Turn the threshold so that `target` of the dense MACs is executed on calibration images, and evaluate there.

        Errors: a target that the gates can't reach, with the range that they can.
        """
        gating = gating_of(self.session.model)
        if gating is None:
            msg = "this model has no gates, so its budget is fixed; there is no threshold to turn"
            raise UsdcoreError(msg)
        batches = self.calibration()
        found = self.session.calibrate(batches, target)
        if found is None:
            msg = "the gates' threshold changes executed MACs, not parameters: --budget needs a recipe with budget.macs"
            raise UsdcoreError(msg)
        if abs(found.execution.macs / self.session.dense.macs - target) > REACH:
            reach = []
            for end in (float("inf"), float("-inf")):
                set_threshold(gating, end)
                reach.append(self.session.execution(batches).macs / self.session.dense.macs)
            msg = (
                f"budget {target:g} is out of reach for this model's gates: with every gate off it executes "
                f"{reach[0]:.4f} of the dense MACs, with every gate on {reach[1]:.4f}"
            )
            raise UsdcoreError(msg)
        evaluation = self.at(self.recipe.budget.batch_size)
        return {
            "target": target,
            "threshold": found.threshold,
            "executed_macs": evaluation.execution.macs,
            "top1": evaluation.top1,
        }

    def calibration(self) -> Any:
        """Calibration batches of the recipe."""
        recipe = self.recipe
        images = recipe.evaluate.calibration_images
        return calibration_batches(self.data.train_eval, recipe.budget.batch_size, recipe.seed, images, self.device)
