"""The control `random`: the compressed model with random gates in the place of its own, each site at its own rate."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from usdcore.engine.setup import Strategies
from usdcore.hooks import registry
from usdcore.plans import Attach

if TYPE_CHECKING:
    from collections.abc import Mapping

    from usdcore.gates import Gate, Gating
    from usdcore.plans import Plan
    from usdcore.recipe import PhaseConfig, Recipe
    from usdcore.units.types import Units

STRATEGY = "random-gates"
RARELY = 1e-6
"""The rate at which something runs that never did: a random gate has no rate of 0."""
SHUFFLES = 8
"""Orders of the evaluation images over which random gates that decide for whole batches are measured: of few batches,
chance would say much.
"""


@dataclass(frozen=True)
class Training:
    """How the control is trained: as `phase`, for so many epochs. `index` is the phase whose steps it repeats, None
    where nothing follows the search.
    """

    phase: PhaseConfig
    epochs: int
    index: int | None


def why_not(gating: Gating | None, units: Units) -> str:
    """Why random gates can't take the place of these; "" where they can."""
    found = replaced(gating, units)
    if not found:
        return (
            "nothing here decides by the input whether a branch or a block runs, so random gates have no rates to run "
            "at; leave the control random out, or name a strategy that skips branches, such as usdc-dynamic"
        )
    for key, gate in found.items():
        name = _plugin(key)
        if name == STRATEGY:
            return f"the gates of {STRATEGY} are random already; leave the control random out"
        others = [site for site in gate.sites if not _skips(site, units)]
        if others:
            return (
                f"the gates of {name} decide about {others[0]} as well as about branches, so random ones can't take "
                "their place; leave the control random out, or let that strategy decide about branches alone"
            )
    return ""


def replaced(gating: Gating | None, units: Units) -> dict[str, Gate]:
    """By key, the gates that decide by the input whether branches or blocks run. Those that only decide about tokens,
    heads or neurons are not among them: they stay as they are.
    """
    keyed = zip(gating.gates, gating.all(), strict=True) if gating is not None else ()
    return {
        key: gate for key, gate in keyed if gate.scope != "static" and any(_skips(site, units) for site in gate.sites)
    }


def without(plan: Plan, keys: Mapping[str, Any]) -> Plan:
    """The plan without the gates of these keys."""
    left = tuple(r for r in plan.records if not isinstance(r, Attach) or r.key not in keys)
    return plan.model_copy(update={"records": left})


def site_rates(gating: Gating, units: Units, rates: Mapping[str, float]) -> dict[str, float]:
    """Of each branch or block at which a replaced gate acts, how often it ran by `rates` of branches. What always ran
    needs no gate.

    A block that is skipped as a whole has the rate of its branches; where one of them has a gate of its own besides,
    each branch has the rate at which both let it run.
    """
    sites = {site for gate in replaced(gating, units).values() for site in gate.sites}
    found: dict[str, float] = {}
    for block in units.blocks:
        inside = [name for name in block.units if name in rates]
        own = [name for name in inside if name in sites]
        if block.name in sites and inside and not own:
            found[block.name] = rates[inside[0]]
        else:
            found |= {name: rates[name] for name in (inside if block.name in sites else own)}
    return {name: max(RARELY, rate) for name, rate in found.items() if rate < 1}


def training(recipe: Recipe, rates: Mapping[str, float] | None = None) -> Training:
    """As the longest of the phases that follow the search, for the epochs of all of them, with `random-gates` at
    `rates` and what acts there without removing anything (distillation). None follows: no epochs.

    The last phase that searches is the last one that names something new that compresses.
    """
    strategies, seen, last = Strategies(), set[str](), 0
    for index, phase in enumerate(recipe.phases):
        new = [strategy for strategy in strategies.of(phase.strategies) if strategy.config.use not in seen]
        seen |= {strategy.config.use for strategy in new}
        if any(strategy.shrinks for strategy in new):
            last = index
    later = range(last + 1, len(recipe.phases))
    index = max(later, key=lambda i: recipe.phases[i].epochs, default=last)
    phase = recipe.phases[index]
    kept = [own for own in phase.strategies if not strategies.made[own.use].shrinks] if later else []
    dice = [_config(rates)] if rates is not None else []
    return Training(
        phase.model_copy(update={"strategies": (*dice, *kept)}),
        sum(recipe.phases[i].epochs for i in later),
        index if later else None,
    )


def describe(recipe: Recipe, epochs: int) -> str:
    """What the control is, in words."""
    size, turns = recipe.budget.batch_size, shuffles(recipe.budget.scope)
    who = f"whole batches of {size}" if recipe.budget.scope == "batch" else "each image"
    more = (
        f"then trained for {epochs} epoch{'s' * (epochs != 1)} more, so longer than the compressed model, never less"
        if epochs
        else "not trained any further, as no phase follows the search"
    )
    means = f"; the mean over {turns} orders of the evaluation images" if turns > 1 else ""
    return (
        "the compressed model itself with random gates in the place of its own: each branch runs as often as its gate "
        f"let it, but by the throw of a die for {who}; {more}{means}"
    )


def shuffles(scope: str) -> int:
    """How often the control is evaluated: gates that decide for each image decide alike in every order."""
    return SHUFFLES if scope == "batch" else 1


def require_installed() -> None:
    """Errors: the strategy that the control is made of is not installed, or is disabled."""
    registry().config("strategy", STRATEGY)


def left_out(gating: Gating, units: Units, rates: Mapping[str, float]) -> str:
    """Why the control is left out after all, with the gates of the compressed model and the rates at which branches ran
    on evaluation images; "" where it is not.
    """
    if not replaced(gating, units):
        return "no gate of a branch or a block is left: each of them did the same for all calibration images"
    if why := why_not(gating, units):
        return why
    if any(rate > RARELY for rate in site_rates(gating, units, rates).values()):
        return ""
    return "every gate did the same for all evaluation images, so nothing would be left to chance"


def _config(rates: Mapping[str, float]) -> Any:
    return registry().config("strategy", STRATEGY).model_validate({"use": STRATEGY, "rates": dict(rates)})


def _skips(site: str, units: Units) -> bool:
    return site in units.branches or any(site == block.name for block in units.blocks)


def _plugin(key: str) -> str:
    """Whose gate bears this key (see `plans.gate_key`)."""
    return key.partition("@")[0].replace("/", ".")
