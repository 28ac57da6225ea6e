"""`usdc-static`: learned logits decide which heads, neurons and branches are removed for good (USDC Eq. 7 and 8)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from usdcore.errors import UsdcoreError
from usdcore.gates import Draw, ForwardState, Gate
from usdcore.strategy import Attachment, Decision, ParameterGroup, StepContext, Strategy
from usdcore_usdc.relax import keep_factor
from usdcore_usdc.resource import ramped, resource_losses

if TYPE_CHECKING:
    from usdcore_usdc.config import StaticConfig


class StaticGate(Gate):
    """All static decisions of a model in one tensor of logit pairs [entries, 2]; index 0 keeps, 1 drops."""

    def __init__(self, logits: dict[str, Tensor], branches: set[str], config: StaticConfig) -> None:
        super().__init__()
        self.sites = tuple(logits)
        self.config = config
        self.branches = branches
        self.sizes = [len(pair) for pair in logits.values()]
        self.pairs = nn.Parameter(torch.cat(list(logits.values())))
        self.noise = config.noise[0] if config.relaxation == "gumbel" else 0.0

    def draw(self, x_BNC: Tensor | None, state: ForwardState) -> dict[str, Draw]:
        """Relaxed or straight-through in training; in evaluation an entry is on unless its drop logit is the larger."""
        if self.training:
            keep = keep_factor(self.pairs, self.config.tau, self.noise, self.config.hard)
        else:
            keep = (self.pairs[:, 0] >= self.pairs[:, 1]).to(self.pairs.dtype)
        return {
            site: self._branch(part[0]) if site in self.branches else Draw(part)
            for site, part in zip(self.sites, keep.split(self.sizes), strict=True)
        }

    def scores(self) -> dict[str, Tensor]:
        """Keep logit minus drop logit, per site: [n] for a group, [] for a branch."""
        margin = (self.pairs[:, 0] - self.pairs[:, 1]).detach()
        parts = zip(self.sites, margin.split(self.sizes), strict=True)
        return {site: part[0] if site in self.branches else part for site, part in parts}

    def _branch(self, keep: Tensor) -> Draw:
        return Draw(keep, 1 - keep if self.config.mix == "literal" and self.training else None)


class Static(Strategy):
    """Static parameters a^h, a^n, a^a, a^f with keep-biased start; the sign rule prunes an entry whose a_0 < a_1."""

    def __init__(self, config: StaticConfig) -> None:
        super().__init__(config)
        #: By site: base indices (None: all) and logit pairs, as the last phase left them.
        self.learned: dict[str, tuple[tuple[int, ...] | None, Tensor]] = {}

    def attach(self, site: Attachment) -> None:
        """One gate over every prunable group and gateable branch; logits of an earlier phase carry over."""
        self.budget = site.budget
        kinds = {kind for kind, on in (("heads", self.config.heads), ("hidden", self.config.hidden)) if on}
        groups = [g for g in site.units.groups.values() if g.kind in kinds and g.reason is None]
        branches = [b for b in site.units.branches.values() if b.reason is None] if self.config.branches else []
        fresh = torch.tensor([[self.config.init_keep / 2, -self.config.init_keep / 2]])
        logits = {}
        for name, size in [*((b.name, 1) for b in branches), *((g.name, g.size) for g in groups)]:
            logits[name] = self._carried(name, site.base_indices(name), fresh.repeat(size, 1))
        if not logits:
            msg = "usdc-static: there is nothing left to prune of what heads, hidden and branches allow"
            raise UsdcoreError(msg)
        self.is_new = not self.learned
        self.gate = StaticGate(logits, {b.name for b in branches}, self.config)
        site.gate("model", self.gate)
        site.param_group(ParameterGroup([self.gate.pairs], lr=self.config.lr))
        self._plan = site.plan

    def begin_step(self, ctx: StepContext) -> None:
        """The Gumbel noise falls over the phase."""
        if self.config.relaxation == "gumbel":
            start, end = self.config.noise
            self.gate.noise = start + (end - start) * min(1.0, ctx.progress)

    def losses(self, ctx: StepContext) -> dict[str, Tensor]:
        """Eq. 9's resource term, and the static part's own where it has a target."""
        weight, ramp = self.config.resource_weight, self.config.ramp if self.is_new else 0.0
        terms = resource_losses(ctx, self.budget, weight, ramp)
        if self.config.target is not None and ctx.spent_static is not None:
            terms["static"] = weight * (ctx.spent_static - ramped(self.config.target, ctx, ramp)) ** 2
        return terms

    def decide(self) -> Decision:
        """Every entry's margin; the budget rule picks the threshold, near 0 where the search met the budget by
        itself.
        """
        self._remember()
        return Decision(scores=self.gate.scores(), static=self.config.target)

    def state_dict(self) -> dict[str, Any]:
        """Logits by site in base coordinates, for a later phase."""
        return {"learned": self.learned}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take the logits of an earlier phase."""
        self.learned = dict(state["learned"])

    def _remember(self) -> None:
        pairs = self.gate.pairs.detach().cpu().clone()
        for site, part in zip(self.gate.sites, pairs.split(self.gate.sizes), strict=True):
            self.learned[site] = (self._plan.keep(site), part.clone())

    def _carried(self, site: str, base: tuple[int, ...] | None, fresh: Tensor) -> Tensor:
        """The logits that an earlier phase learned for what is left of a site; `fresh` for what it did not know."""
        if site not in self.learned:
            return fresh
        known, learned = self.learned[site]
        rows = {index: row for row, index in enumerate(known if known is not None else range(len(learned)))}
        out = fresh.clone()
        for here, index in enumerate(base if base is not None else range(len(fresh))):
            if index in rows:
                out[here] = learned[rows[index]]
        return out
