"""The sentences of the report: what was promised and kept, how the controls compare, how many gates really decide."""

from __future__ import annotations

from typing import TYPE_CHECKING

from usdcore.report import text
from usdcore.report.table import executed

if TYPE_CHECKING:
    from usdcore.report.result import Control, Evaluation, Result

METRICS = {"macs": "multiply-accumulates", "params": "parameters", "latency": "latency"}
SCOPES = {
    "static": "nothing is decided per input",
    "batch": "gates decide once for a batch",
    "sample": "gates decide for each image",
    "token": "gates decide for each token",
}

# A search that is further from its target than this met the budget by the final projection, not by itself.
SEARCH_TOLERANCE = 0.05

# Two models are compared at equal cost when their executed MACs are this close, as a fraction of dense.
EQUAL_COST = 0.01


def metric(result: Result) -> str:
    """The budget's metric in words."""
    return METRICS.get(result.budget.metric, result.budget.metric)


def verdict(result: Result) -> str:
    """One sentence: whether the budget is met, by how much, and the tolerance."""
    budget = result.budget
    if budget.achieved is None:
        return f"The budget was not measured: {text.NOT_RUN}."
    gap = budget.achieved - budget.target
    side = "above" if gap > 0 else "below"
    distance = f"{text.points(gap)} {side} what was asked (tolerance {text.points(budget.tolerance)})"
    if not budget.met and budget.why:
        return f"The budget is MISSED: {budget.why}."
    return f"The budget is {'met' if budget.met else 'MISSED'}: {text.percent(budget.achieved)} measured, {distance}."


def budget_sentences(result: Result) -> tuple[str, ...]:
    """What was asked, calibrated and measured, the verdict, and what the search reached by itself."""
    budget = result.budget
    asked = f"Asked: {text.percent(budget.target)} of the dense model's {metric(result)}"
    if result.gates.decisions:
        decided = SCOPES.get(budget.scope, f"scope {budget.scope}")
        asked += f" on shuffled evaluation images at batch size {budget.batch_size} ({decided})"
    asked += "."
    if budget.calibrated is not None:
        asked += f" Calibrated: {text.percent(budget.calibrated)} on calibration images."
    if budget.achieved is not None:
        asked += f" Measured: {text.percent(budget.achieved)} on evaluation images."
    sentences = (verdict(result), asked, _search_sentence(result), _removed_sentence(result))
    return tuple(sentence for sentence in sentences if sentence)


def _search_sentence(result: Result) -> str:
    budget = result.budget
    if budget.after_search is None:
        return ""
    gap = abs(budget.after_search - budget.target)
    found = f"The search itself ended at {text.percent(budget.after_search)}, {text.points(gap)} from the target"
    if gap > SEARCH_TOLERANCE:
        limit = text.points(SEARCH_TOLERANCE)
        return f"{found}: more than {limit}, so the final projection, not the search, chose the size."
    return f"{found}, before the final projection."


def _removed_sentence(result: Result) -> str:
    """What was cut out for good, and what each kind of it saved."""
    nouns = {
        "qk_dims": "query and key dims of heads",
        "v_dims": "value dims of heads",
        "hidden": "hidden neurons",
        "width": "channels of the residual stream",
    }
    parts = [f"{nouns.get(kind, kind)} {text.percent(share)}" for kind, share in result.removed.items() if share > 0]
    counted = METRICS["macs"] if result.budget.metric == "latency" else metric(result)  # no part has a time of its own
    return f"Of the dense model's {counted} went for good with: {', '.join(parts)}." if parts else ""


def promise(result: Result, row: Evaluation) -> str:
    """Whether the budget's promise covers this evaluation."""
    budget = result.budget
    same = (row.batch_size, row.scope, row.order) == (budget.batch_size, budget.scope, "shuffled")
    return "promised" if same else "reported, not promised"


def comparison(result: Result, control: Control) -> str:
    """Whether a control is a like-for-like comparison: equal executed MACs and equal epochs."""
    name = f"Control '{control.name}'" + (f" ({control.description})" if control.description else "")
    ours, theirs, dense = executed(result.compressed), executed(control), executed(result.dense)
    if ours is None or theirs is None or not dense or control.top1 is None or result.compressed.top1 is None:
        return f"{name}: {text.NOT_RUN}."
    gap = (theirs - ours) / dense
    differs = []
    if abs(gap) > EQUAL_COST:
        differs.append(f"its executed MACs are {text.points(gap)} of dense {'above' if gap > 0 else 'below'} ours")
    if control.epochs != result.compressed.epochs:
        differs.append(
            f"it was trained for {text.number(control.epochs)} epochs, ours for {text.number(result.compressed.epochs)}"
        )
    lead = result.compressed.top1 - control.top1
    outcome = f"the compressed model's top-1 is {abs(lead):.2f} points {'above' if lead > 0 else 'below'} it"
    if round(lead, 2) == 0:
        outcome = "the compressed model's top-1 equals it"
    if differs:
        return f"{name}: {outcome}, but the comparison is not like for like: {' and '.join(differs)}."
    return f"{name}: at equal executed MACs and equal epochs, {outcome}."


def gate_sentences(result: Result) -> tuple[str, ...]:
    """How many decisions really depend on the input."""
    gates = result.gates
    if gates.decisions == 0:
        return ("There are no gates: every image takes the same path, and the cost is the same at every batch size.",)
    rest = gates.decisions - gates.dynamic
    verb = "depends" if gates.dynamic == 1 else "depend"
    first = (
        f"{gates.networks} gate network{'s' * (gates.networks != 1)} make{'s' * (gates.networks == 1)} "
        f"{gates.decisions} decision{'s' * (gates.decisions != 1)}; {gates.dynamic} of them really {verb} on the input "
        f"(executed 2 % to 98 % of the time)"
    )
    return (first + (f", the other {rest} almost always come out the same way." if rest else "."),)


def conditions(result: Result) -> str:
    """Model, data and budget in one line: what stands under a figure's title."""
    budget, data = result.budget, result.provenance.data
    where = f" at batch size {budget.batch_size} ({budget.scope} scope)" if result.gates.decisions else ""
    measure = "MACs" if budget.metric == "macs" else metric(result)
    asked = f"budget {text.percent(budget.target)} of dense {measure}{where}"
    measured = "" if budget.achieved is None else f", measured {text.percent(budget.achieved)}"
    # A long description must not push the budget off the figure.
    return f"{text.shorten(data.description or data.source, 50)} · {asked}{measured}"
