"""Options of `uvc`. Imports no torch.

UVC (Unified Visual Transformer Compression) is known here from its public code, its figure and fragments of its text.
Options marked (ours) have no counterpart there; `public` holds the public code's own numbers, used with `faithful`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from usdcore.recipe import PluginConfig

if TYPE_CHECKING:
    from collections.abc import Iterator

    from usdcore.hooks.config import Beside


class PublicConfig(BaseModel):
    """The public code's step sizes (its README's command), per step, as they are there."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    slr: float = Field(default=0.02, gt=0)
    """SGD rate of the counts s (heads and neurons in one tensor)."""
    rlr: float = Field(default=0.02, gt=0)
    """SGD rate of the counts r (dims of each head)."""
    ylr: float = Field(default=1e-4, ge=0)
    """Ascent rate of y."""
    plr: float = Field(default=1e-4, ge=0)
    """Ascent rate of p."""
    zlr: float = Field(default=1.0, ge=0)
    """Ascent rate of z: the first value of the schedule 1, 5, 9, 13, 17, whose later ones never take effect."""
    glr: float = Field(default=0.1, gt=0)
    """SGD rate of the gates (momentum 0.9, weight decay 1e-4)."""
    gating_interval: int = Field(default=50, ge=1)
    """Steps between two updates of the gates."""
    gating_weight: float = Field(default=5e-4, ge=0)
    """Weight of the resource's gradient on the gates."""
    z_grad_clip: float = Field(default=0.5, gt=0)
    """R - budget is clamped to this where its gradient is taken, which is zero outside."""
    clamp_gradient: Literal["torch", "passes"] = "torch"
    """The pruned shares are clamped to [0, 1]. At the bound, where they start, torch gives a clamp no gradient now, so
    that they never move; `passes`: as it was when that code was published."""
    sl2wd: float = Field(default=0.0, ge=0)
    """Weight decay of s and r, as shares of their ranges."""


class UvcConfig(PluginConfig):
    """Joint pruning and skipping by a primal-dual method: min over weights, counts and gates, max over y, p, z >= 0."""

    heads: bool = True
    """Prune whole heads (s of each attention)."""
    dims: bool = True
    """Prune output dims of each head (r), a different number in each."""
    hidden: bool = True
    """Prune hidden neurons (s of each feed-forward)."""
    skip: Literal["block", "branch", "none"] = "block"
    """Learn which encoder blocks to leave out; `branch`: MHSA and FFN each with a gate of its own."""
    target: float | None = Field(default=None, gt=0, le=1)
    """Share of the dense model that the pruned model aims at with all dynamic gates on, where another strategy's gates
    save the rest; null: the budget itself (ours)."""
    warmup: float = Field(default=1 / 6, ge=0, lt=1)
    """Share of the phase in which only weights train (5 of 30 epochs)."""
    ramp: float = Field(default=0.6, gt=0, le=1)
    """Share of the rest over which the budget falls in a line from the dense model's cost to the target (ours)."""
    rate: float = Field(default=4.0, gt=0)
    """How many times the counts could cross their whole range in the phase, at most; heads, dims and neurons move
    each by its own step (ours: independent of the number of steps)."""
    dual_rate: float = Field(default=20.0, ge=0)
    """Ascent of y and p over the phase, times the share of a row's norm that is still in what is to go (ours)."""
    prox: float = Field(default=10.0, ge=0)
    """Weight of the proximal step on the columns that are to go; its step size is the learning rate, as in the
    paper, and the duals here start at 1 (ours)."""
    damping: float = Field(default=25.0, ge=0)
    """Share of the multiplier that answers the distance to the budget at once, beside z, which sums it up (ours: an
    augmented Lagrangian; without it R swings around the budget)."""
    z_rate: float = Field(default=200.0, ge=0)
    """Ascent of z over the phase, per unit of distance to the budget (ours)."""
    tau: float = Field(default=0.5, gt=0)
    """Temperature of the Gumbel gates."""
    hard: bool = True
    """Gates of 0 or 1 with a straight-through gradient, in the forward and in R alike; false: the relaxed value."""
    gates_until: float = Field(default=0.7, gt=0, le=1)
    """Share of the phase after which the gates stay as they are and the counts alone close the gap; the Gumbel noise
    has fallen to 0 by then (ours)."""
    inside: float = Field(default=0.25, ge=0, lt=1)
    """Least share of the saving that has to come from within blocks: when the gates are settled, the blocks that are
    off by least are put back until it does. The public code's runs end with nothing pruned but blocks (ours)."""
    gate_lr: float = Field(default=0.01, gt=0)
    """Adam's learning rate of the gates."""
    gate_weight: float = Field(default=1.0, ge=0)
    """Weight of the resource on the gates, in units of the task's loss per share of the dense model (ours)."""
    within: float = Field(default=0.05, gt=0)
    """How far from the target the search may end by itself; further off is an error."""
    faithful: bool = False
    """Do as the public code does, its oddities included, to measure the difference: z's schedule stuck at its first
    value, steps that depend on the number of steps, the clamps of R, one clip for heads and neurons, gates weighted by
    their place in the interval and updated by two optimizers, half-strength blocks in the warm-up."""
    public: PublicConfig = PublicConfig()
    """The numbers used with `faithful`."""

    def mistakes(self, beside: Beside) -> Iterator[tuple[str, str]]:
        """Nothing is learned without training."""
        if beside.first == 0:
            text = f"{self.use} learns what to remove in the first phase that names it, which has 0 epochs"
            yield "", f"{text}; give it epochs"

    @model_validator(mode="after")
    def _something(self) -> UvcConfig:
        if not (self.heads or self.dims or self.hidden or self.skip != "none"):
            msg = "nothing to compress: set at least one of heads, dims, hidden to true, or skip to block or branch"
            raise ValueError(msg)
        return self
