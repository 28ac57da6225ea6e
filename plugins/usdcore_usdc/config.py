"""Options of `usdc-static` and `usdc-dynamic`. Imports no torch.

The paper states gamma = 100 and batch 256; its relaxation, learning rates, initial values, schedules and Eq. 5, 6 are
not public. Every default marked (reconstructed) is ours.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from pydantic import Field, model_validator

from usdcore.recipe import PluginConfig, Use

if TYPE_CHECKING:
    from collections.abc import Iterator

    from usdcore.hooks.config import Beside

    GateNetwork = Split = PluginConfig
else:
    GateNetwork, Split = Use["gate-network"], Use["split"]

MUTABLE = {"mutable": True}
Anneal = tuple[float, float]


class StaticConfig(PluginConfig):
    """Static parameters: a pair (keep, drop) of logits per head, per hidden neuron, per MHSA branch, per FFN branch."""

    heads: bool = True
    """Prune attention heads (a^h)."""
    hidden: bool = True
    """Prune hidden neurons (a^n)."""
    branches: bool = True
    """Remove whole MHSA and FFN branches (a^a, a^f)."""
    relaxation: Literal["gumbel", "softmax"] = "gumbel"
    """How a pair of logits becomes a factor in training (reconstructed)."""
    hard: bool = True
    """0/1 factors with a straight-through gradient; false: the relaxed value itself."""
    tau: float = Field(default=1.0, gt=0)
    """Temperature of the softmax over a pair."""
    noise: Anneal = (1.0, 0.0)
    """Scale of the Gumbel noise at the phase's start and end: the search ends on its own decisions (reconstructed)."""
    init_keep: float = 3.0
    """Initial keep logit minus drop logit (reconstructed); 0 would start at a quarter of the blocks' MACs."""
    lr: float = Field(default=0.01, gt=0)
    """Adam's learning rate of the logits (reconstructed)."""
    mix: Literal["convex", "literal"] = "convex"
    """`convex`: Z + m*delta with m = g*a0. `literal`: Eq. 8 as printed, whose weights do not sum to 1
    where a dynamic gate acts too (without one, both are the same)."""
    target: float | None = Field(default=None, gt=0, le=1)
    """Share of the dense model that the static part aims at with all gates on, by a second term like Eq. 9's, and keeps
    at most; the gates then have to save the rest. null: the joint term alone decides who saves what (the paper's 74.9 %
    and 64.8 % in Figure 5 say that both do, not how it was arranged; reconstructed)."""
    ramp: float = Field(default=0.5, ge=0, le=1)
    """Share of the phase over which the target falls from the dense model's cost to what is asked, where this strategy
    is new: at once, it drives gates shut before they have learned anything (reconstructed)."""
    resource_weight: float = Field(default=100.0, ge=0)
    """gamma of Eq. 9."""

    def mistakes(self, beside: Beside) -> Iterator[tuple[str, str]]:
        """Nothing is learned without training."""
        if beside.first == 0:
            text = f"{self.use} learns what to remove in the first phase that names it, which has 0 epochs"
            yield "", f"{text}; give it epochs"

    @model_validator(mode="after")
    def _something(self) -> StaticConfig:
        if not (self.heads or self.hidden or self.branches):
            msg = "nothing to prune: set at least one of heads, hidden, branches to true"
            raise ValueError(msg)
        return self


class DynamicConfig(PluginConfig):
    """One gate network per layer reads the stream that enters it and decides whether MHSA and FFN run."""

    gate_network: Literal["search"] | GateNetwork = "search"
    """`search` among `space`, or one network for every layer."""
    space: list[GateNetwork] = Field(
        default_factory=lambda: [f"G{k}" for k in range(1, 10)], min_length=1, validate_default=True
    )
    """Candidates of the search: names, or mappings with the network's options."""
    split: Split = Field(default="recursive", validate_default=True)
    """How a training batch is split into groups that share decisions."""
    shuffle: Literal["forward", "layer"] = "forward"
    """Draw the random grouping once per forward, or anew in each layer (reconstructed)."""
    attention: bool = True
    """Gate the MHSA branches."""
    ffn: bool = True
    """Gate the FFN branches."""
    relaxation: Literal["softmax", "gumbel"] = "softmax"
    """Weights of the candidates in the search (a^g)."""
    tau: float = Field(default=1.0, gt=0)
    """Temperature of the gates' sigmoid."""
    noise: Anneal = Field(default=(1.0, 0.0), json_schema_extra=MUTABLE)
    """Scale of the logistic noise on a group's logit at the start and end of the phase that makes the gates; later
    phases keep the last value (reconstructed)."""
    init_logit: float = 2.0
    """Initial logit of every gate: mostly on (reconstructed)."""
    commit_at: float = Field(default=0.6, ge=0, le=1)
    """Share of the search phase after which each layer keeps its best network alone, and trains it (reconstructed)."""
    lr: float = Field(default=1e-3, gt=0, json_schema_extra=MUTABLE)
    """Learning rate of the gate networks (reconstructed)."""
    choice_lr: float = Field(default=0.01, gt=0)
    """Learning rate of the choice among candidates (reconstructed)."""
    ramp: float = Field(default=0.5, ge=0, le=1)
    """Share of the phase over which the target falls from the dense model's cost to what is asked, where this strategy
    is new: at once, it drives gates shut before they have learned anything (reconstructed)."""
    resource_weight: float = Field(default=100.0, ge=0, json_schema_extra=MUTABLE)
    """gamma of Eq. 9."""
    information_weight: float = Field(default=0.0, ge=0, json_schema_extra=MUTABLE)
    """Weight of a reward for the mutual information between a gate's decision and the image, against gates that end up
    always on or always off. Not in the paper."""

    def mistakes(self, beside: Beside) -> Iterator[tuple[str, str]]:
        """Nothing is learned without training."""
        if beside.epochs == 0:
            text = f"{self.use} learns when to skip, and the phases that name it have 0 epochs"
            yield "", f"{text}; give one of them epochs"

    @model_validator(mode="after")
    def _something(self) -> DynamicConfig:
        if not (self.attention or self.ffn):
            msg = "nothing to gate: set attention or ffn to true"
            raise ValueError(msg)
        return self
