"""Options of `prune` and `prune-unstructured`. Imports no torch."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import Field, StringConstraints, model_validator

from usdcore.recipe import PluginConfig

if TYPE_CHECKING:
    from collections.abc import Iterator

    from usdcore.hooks.config import Beside

Pattern = Annotated[str, StringConstraints(min_length=1, max_length=200)]
Ratio = Annotated[float, Field(ge=0, lt=1)]


class PruneConfig(PluginConfig):
    """Structured pruning by importance, when the phase ends: with `epochs: 0` at once, else after its training."""

    importance: Literal["l1", "l2", "taylor", "random", "bn_scale"] = "l2"
    """What an entry is worth. `l1`, `l2`: the norm of all parameters that go with it (Li et al., 2017, over the whole
    group as in DepGraph, Fang et al., 2023). `taylor`: what the loss would change without it, to first order, summed
    over the phase's steps (Molchanov et al., 2019). `bn_scale`: the scale of the BatchNorm on it (Network Slimming, Liu
    et al., 2017). `random`: a baseline."""
    taylor_power: Literal[1, 2] = 2
    """`taylor` sums |weight * gradient| to this power over parameters and steps."""
    normalize: Literal["mean", "max", "none"] = "mean"
    """What each group's importances are divided by, so that one ranking may compare groups. `local` needs none."""
    scope: Literal["global", "local"] = "global"
    """`global`: one ranking of all groups. `local`: the same share of each, to one entry (of dims, in each head)."""
    heads: bool = True
    """Remove attention heads."""
    hidden: bool = True
    """Remove hidden neurons."""
    width: bool = False
    """Remove channels of the residual stream: from the embedding, every branch, norm and the head together. Norms then
    run over what is left, so the model changes more than by zeros in their place: fine-tune. Of several streams (the
    stages of a pyramid), all that can be cut."""
    v_dims: bool = False
    """Remove value dims inside heads; by `global`, a different number in each."""
    qk_dims: bool = False
    """Remove query dims, each with the key dim that it meets (rotary pairs as one). Rows of the projections go; the
    attention itself multiplies zeros in their place."""
    ratios: dict[Pattern, Ratio] = Field(default_factory=dict)
    """Shares to remove, by glob patterns of units (`blocks.0.*`) or groups (`*.mlp:hidden`); 0 leaves them whole. The
    budget decides about what no pattern matches. Of hidden neurons and channels of a stream, what is left of a share is
    rounded to the multiple of `budget.round_to` above it."""
    seed: int = Field(default=0, ge=0, lt=2**31)
    """Of `random`."""

    @property
    def kinds(self) -> tuple[str, ...]:
        """The kinds of groups to prune."""
        return tuple(kind for kind in ("heads", "hidden", "v_dims", "qk_dims", "width") if getattr(self, kind))

    def mistakes(self, beside: Beside) -> Iterator[tuple[str, str]]:
        """Gradients need training."""
        if self.importance == "taylor" and beside.epochs == 0:
            text = "taylor needs gradients, and the phases that name it have 0 epochs; give one, or use l1 or l2"
            yield "importance", text

    @model_validator(mode="after")
    def _something(self) -> PruneConfig:
        if not self.kinds:
            msg = "nothing to prune: set at least one of heads, hidden, v_dims, qk_dims, width to true"
            raise ValueError(msg)
        return self


class UnstructuredConfig(PluginConfig):
    """Single weights at zero, by magnitude (Han et al., 2015). MACs, parameters and files stay as they are: `budget`
    counts the model as dense, so alone it goes with `macs: 1.0`. Name it in every later phase that trains, or the zeros
    come back to life."""

    sparsity: float = Field(ge=0, lt=1)
    """Share of the weights that become zero."""
    scope: Literal["global", "local"] = "global"
    """`global`: one threshold. `local`: the same share of each matrix."""
    weights: Literal["blocks", "all"] = "blocks"
    """Of which linear and convolution layers: those in encoder blocks, or patch embedding and classifier too."""
    ratios: dict[Pattern, Ratio] = Field(default_factory=dict)
    """Shares for single layers, by glob patterns of their names (`blocks.0.*`), in place of `sparsity`; 0 leaves them
    as they are."""
    ramp: float = Field(default=0.0, ge=0, lt=1)
    """Share of the phase over which the sparsity rises, by s (1 - (1 - t)^3) (Zhu and Gupta, 2017); 0: at once."""
    every: int = Field(default=50, ge=1)
    """Steps between two rises."""
