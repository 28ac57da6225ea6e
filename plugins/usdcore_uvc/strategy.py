"""`uvc`: the strategy. Its gate counts and skips, a solver moves counts, duals and multiplier after every step."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from usdcore.costs import Tree, fewest
from usdcore.errors import UsdcoreError
from usdcore.strategy import Attachment, Decision, ParameterGroup, StepContext, Strategy
from usdcore_uvc.faithful import PublicSolver
from usdcore_uvc.gate import UvcGate
from usdcore_uvc.layout import lay_out
from usdcore_uvc.public import public_cost
from usdcore_uvc.solver import Solver

if TYPE_CHECKING:
    from torch import Tensor

    from usdcore.units.types import Units
    from usdcore_uvc.config import UvcConfig


class Uvc(Strategy):
    """Joint pruning and skipping; `config.faithful` picks the solver."""

    composes = frozenset({"heads", "hidden", "v_dims", "branch"})

    def __init__(self, config: UvcConfig) -> None:
        super().__init__(config)
        self._saved: dict[str, Any] | None = None
        self.solver: Solver | PublicSolver | None = None
        self.is_over = False  # the phase that the solver belongs to has decided

    def attach(self, site: Attachment) -> None:
        """One gate over every group to prune and everything to skip. Errors: there is nothing of either."""
        config = self.config
        kinds = frozenset(kind for kind in ("heads", "dims", "hidden") if getattr(config, kind))
        layout = lay_out(site.model, site.units, kinds)
        skips = _skips(site.units, config.skip)
        if not layout.sizes and not skips:
            msg = "uvc: there is nothing to prune or skip in this model of what heads, dims, hidden and skip allow"
            raise UsdcoreError(msg)
        self.target, self.is_over = config.target or site.budget.target, False
        self.blocks = {block.name: block.units for block in site.units.blocks}
        self.gate = UvcGate(layout.sizes, skips, config.tau, config.hard)
        site.gate("model", self.gate)
        if config.faithful:
            cost = public_cost(site.model, site.units, layout, skips)
            self.solver = PublicSolver(config, layout, self.gate, self.target, cost)
            site.param_group(ParameterGroup([self.gate.logits], lr_mult=1.0, weight_decay=0.05))
        else:
            savings = [self._saving(site, name) for name in skips]
            self.solver = Solver(config, layout, self.gate, self.target, savings)
            self._require_reachable(site, self.solver)
            self.solver.measure_unit(site.units.macs)
            site.param_group(ParameterGroup([self.gate.logits], lr=config.gate_lr))
        if self._saved is not None:
            self.solver.load_state_dict(self._saved)
            self._saved = None

    def begin_step(self, ctx: StepContext) -> None:
        """Schedules, norms, and the entries that this step counts as kept."""
        assert self.solver is not None
        self.solver.begin_step(ctx)

    def losses(self, ctx: StepContext) -> dict[str, Tensor]:
        """The resource's pull on the gates."""
        assert self.solver is not None
        spent = ctx.spent if self.config.target is None else ctx.spent_static
        return {} if spent is None else self.solver.losses(ctx, spent)

    def after_backward(self, ctx: StepContext) -> None:
        """The public code uses the clipped gradient of the gates a second time."""
        if isinstance(self.solver, PublicSolver):
            self.solver.after_backward()

    def after_step(self, ctx: StepContext) -> None:
        """Proximal step, counts, dual ascent. Errors: the training loop did not say its learning rate."""
        assert self.solver is not None
        if ctx.lr is None:
            msg = "uvc's proximal step has the size of the learning rate: call session.begin_step(..., lr=...)"
            raise UsdcoreError(msg)
        self.solver.after_step(ctx, ctx.lr)

    def decide(self) -> Decision:
        """Counts as scores, so that the projection multiplies all of them by one number; skipped branches as drops."""
        assert self.solver is not None
        self.gate.eval()
        off = [name for name, on in zip(self.gate.skips, self.gate.execute().tolist(), strict=True) if not on]
        drops = tuple(branch for name in off for branch in self.blocks.get(name, (name,)))
        within = None if self.config.faithful or self.config.target is not None else self.config.within
        self.is_over = True
        return Decision(self.solver.counts.scores(), drops, within=within, account=self._account(len(off)))

    def state_dict(self) -> dict[str, Any]:
        """Counts, duals and multiplier of the running phase; a later one begins anew, on what is left."""
        return {"solver": None if self.solver is None or self.is_over else self.solver.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on with them: at once where the phase has begun, else when it does."""
        if self.solver is None:
            self._saved = state["solver"]
        elif state["solver"] is not None:
            self.solver.load_state_dict(state["solver"])

    def _require_reachable(self, site: Attachment, solver: Solver) -> None:
        """Errors: a target below what one head, one dim and one neuron of every layer cost, blocks that may be skipped
        left out.
        """
        tree, kept = Tree(site.units, site.budget.metric), fewest(site.units, self.gate.group_sizes)
        least, room = tree.decided(kept), solver.theirs(self.target)
        for name, saving in sorted(zip(self.gate.skips, solver.savings, strict=True), key=lambda pair: pair[1]):
            if saving <= room:
                room -= saving
                kept |= dict.fromkeys(self.blocks.get(name, (name,)), 0)
        reached = tree.decided(kept) / site.dense_total
        if reached > self.target + (0.0 if solver.counts.kinds else self.config.within):
            whole = least / site.dense_total
            msg = (
                f"uvc: {self.target:g} of the dense {site.budget.metric} can't be reached: one head, one dim and one "
                f"neuron in every layer cost {whole:.4f}, and {reached:.4f} are left with all skipped that `skip` and "
                "`inside` allow; ask for at least that"
            )
            raise UsdcoreError(msg)

    def _saving(self, site: Attachment, name: str) -> float:
        """What skipping a block or a branch saves, as a share of the dense model."""
        branches = [site.units.branches[branch] for branch in self.blocks.get(name, (name,))]
        own = sum(b.macs if site.budget.metric == "macs" else b.params for b in branches)
        return own / site.dense_total

    def _account(self, skipped: int) -> str:
        """Where the search stands, for the message when it misses its budget."""
        assert self.solver is not None
        rows = [f"{full} of {all_} rows of {kind}" for kind, (full, all_) in self.solver.counts.at_limit().items()]
        limits = ", ".join(rows) or "nothing"
        return (
            f"at their limit: {limits}; skipped: {skipped} of {len(self.gate.skips)}. Give the phase more epochs, or "
            "raise rate, z_rate or gate_weight"
        )


def _skips(units: Units, granularity: str) -> list[str]:
    """The blocks or branches that may be left out: those whose branches can all be gated."""
    if granularity == "branch":
        return [name for name, branch in units.branches.items() if branch.reason is None]
    if granularity == "none":
        return []
    whole = [block for block in units.blocks if block.reason is None]
    return [block.name for block in whole if all(branch.reason is None for branch in block.branches)]
