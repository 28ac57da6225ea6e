"""The gate of one block: three linear maps of the stream that enters it, and what they decide for each image.

Shape legend: B images, N tokens (the first P of them class and distillation tokens), C width of the stream, H heads,
S layers (attention, FFN).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, Literal

import numpy as np
import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor, nn

from usdcore.errors import UsdcoreError
from usdcore.gates import Draw, ForwardState, Gate, TokenDraw
from usdcore.owngroups import reading_group
from usdcore.plans import TOKENS
from usdcore_adavit.policy import certain, gumbel_sigmoid

if TYPE_CHECKING:
    from collections.abc import Mapping

    from usdcore.units.types import Group, Units

#: The kind of group that an FFN's input columns, tied to heads, are, and how the names of such sites end.
COLUMNS = "head_columns"
Finite = Annotated[float, Field(allow_inf_nan=False)]


class Tie(BaseModel):
    """Input columns of an FFN that go with an attention's heads: head i has `each` columns, the first of which is
    `each` times `places[i]` (where the head stood in the base model).
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    site: str = Field(max_length=300)
    places: tuple[Annotated[int, Field(ge=0, le=256)], ...] = Field(min_length=1, max_length=256)
    each: int = Field(ge=1, le=65_536)

    def group(self, model: nn.Module, units: Units) -> Group:
        """The columns as a group. Errors: the unit has no linear layers that read these."""
        unit = self.site.partition(":")[0]
        block = next((block for block in units.blocks if unit in block.units), None)
        layers = readers(units, unit)
        if block is None or not layers or block.width < self.each * (max(self.places) + 1):
            msg = f"{self.site}: {unit} has no linear layers that read {self.each} columns for each head"
            raise UsdcoreError(msg)
        entry_of = np.full(block.width, -1, np.int64)
        for entry, place in enumerate(self.places):
            entry_of[place * self.each : (place + 1) * self.each] = entry
        return reading_group(model, block, self.site, COLUMNS, dict.fromkeys(layers, entry_of))


class HeadGroup(BaseModel):
    """The heads of one attention: `count` decisions, each given at all of `sites`, those of `ties` among them."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    sites: tuple[str, ...] = Field(min_length=1, max_length=64)
    count: int = Field(ge=1, le=256)
    ties: tuple[Tie, ...] = Field(default=(), max_length=16)

    def without(self, gone: set[str]) -> HeadGroup | None:
        """The same where units are gone; None where nothing is left."""
        sites = tuple(site for site in self.sites if site.partition(":")[0] not in gone)
        ties = tuple(tie for tie in self.ties if tie.site in sites)
        return self.model_copy(update={"sites": sites, "ties": ties}) if sites else None


class Policy(BaseModel):
    """What a block's gate decides about, enough to build it anew: what an attach record of this plugin holds.

    `branches` are all that the block has; `layers` has a name for each output of the map for layers, None for a branch
    that is not decided about any more. `patches` is the number of tokens that are decided about in images of the
    model's own size. Above the logit `edge` a head or a layer is on, above `token_edge` a token; `threshold` is the
    dial, a shift of all logits.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    branches: tuple[str, ...] = Field(min_length=1, max_length=64)
    layers: tuple[str | None, ...] = Field(max_length=64)
    heads: tuple[HeadGroup, ...] = Field(max_length=16)
    tokens: bool
    prefix: int = Field(ge=0, le=64)
    patches: int = Field(ge=0, le=1_000_000)
    width: int = Field(ge=1, le=65_536)
    edge: Finite
    token_edge: Finite
    scope: Literal["sample"] = "sample"
    threshold: Finite = 0.0

    @property
    def num_heads(self) -> int:
        """Outputs of the map for heads."""
        return sum(group.count for group in self.heads)

    @property
    def is_skippable(self) -> bool:
        """Whether an image may pass the whole block by."""
        return set(self.branches) <= set(self.layers)

    @property
    def decides(self) -> bool:
        """Whether anything is left to decide about."""
        return bool(self.tokens or self.heads or any(self.layers))

    def without(self, gone: set[str], settled: set[str]) -> Policy | None:
        """The same for a model in which branches are `gone`, and about `settled` ones nothing is to be decided any
        more. None where nothing is left.
        """
        branches = tuple(name for name in self.branches if name not in gone)
        heads = tuple(own for own in (group.without(gone) for group in self.heads) if own is not None)
        layers = tuple(None if name in gone | settled else name for name in self.layers)
        update: dict[str, Any] = {"branches": branches, "heads": heads, "layers": layers}
        left = self.model_copy(update=update)
        return left if branches and left.decides else None


@dataclass
class Drawn:
    """One training forward's decisions, with their gradient: the shares of heads and of tokens that are on [B], the
    layers that are [B, S]; `alive` [B] is 0 for images that pass the whole block by.
    """

    alive: Tensor
    layers: Tensor | None = None
    heads: Tensor | None = None
    tokens: Tensor | None = None


class PolicyGate(Gate):
    """Decides about a block's heads and layers by its class token and about each patch token by itself, for each image.

    In evaluation something is on where its logit less `threshold` is above the policy's edge. In training it draws
    Gumbel-sigmoids; but one that is trained without its strategy (a loaded model in plain PyTorch) decides as in
    evaluation, and is not learned.
    """

    scope = "sample"

    def __init__(self, block: str, policy: Policy, init_logit: float = 0.0) -> None:
        super().__init__()
        self.tap = block
        self.policy = policy
        self.threshold = policy.threshold
        self.fewest_tokens = policy.prefix
        self.is_learning = False
        self.tau = self.noise = 1.0
        self.drawn: Drawn | None = None
        self._num_patches = policy.patches
        layers = [name for name in policy.layers if name is not None]
        groups = [site for group in policy.heads for site in group.sites]
        self.sites = (*layers, *groups, *([block + TOKENS] if policy.tokens else []))
        edge = init_logit + policy.edge
        self.heads = _linear(policy.width, policy.num_heads, edge)
        self.layers = _linear(policy.width, len(policy.layers) if layers else 0, edge)
        self.tokens = _linear(policy.width, int(policy.tokens), init_logit + policy.token_edge)

    def __getstate__(self) -> dict[str, Any]:
        # What belongs to a forward is part of its graph, which a deepcopy (for averaged weights) can't take.
        return {**self.__dict__, "drawn": None}

    def load_state_dict(self, state_dict: Mapping[str, Any], strict: bool = True, assign: bool = False) -> Any:
        """From a gate that decided about more: what this one no longer decides about is left out."""
        own = self.state_dict()
        return super().load_state_dict({k: v for k, v in state_dict.items() if k in own}, strict, assign)

    def groups(self, model: nn.Module, units: Units) -> list[Group]:
        """The columns that are tied to heads."""
        return [tie.group(model, units) for group in self.policy.heads for tie in group.ties]

    def draw(self, x_BNC: Tensor | None, state: ForwardState) -> dict[str, Draw]:
        """Factors [B] on branches, [B, H] on heads, and the tokens [B, N] that the block computes.

        Errors: a stream that has no tokens to decide about.
        """
        assert x_BNC is not None
        if x_BNC.shape[1] <= self.policy.prefix:
            msg = f"adavit: {self.tap} is given {x_BNC.shape[1]} tokens, the first {self.policy.prefix} of which always"
            raise UsdcoreError(f"{msg} stay; give images of the model's own size, or make the file anew")
        prefix, learns = self.policy.prefix, self.training and self.is_learning
        summary_BC = x_BNC[:, 0] if prefix else x_BNC.mean(1)
        self._num_patches = x_BNC.shape[1] - prefix
        drawn = Drawn(torch.ones(len(x_BNC), device=x_BNC.device))
        draws: dict[str, Draw] = {}
        if self.layers is not None:
            keep_BS = self._decide(self.layers(summary_BC), self.policy.edge)
            columns = [i for i, name in enumerate(self.policy.layers) if name is not None]
            draws |= {str(self.policy.layers[i]): Draw(keep_BS[:, i]) for i in columns}
            drawn.layers = torch.stack([keep_BS[:, i] for i in columns], dim=1)  # a list as index would be copied over
            if self.policy.is_skippable:
                drawn.alive = drawn.layers.detach().amax(1)
        if self.heads is not None:
            keep_BH = self._decide(self.heads(summary_BC), self.policy.edge)
            parts = keep_BH.split([group.count for group in self.policy.heads], dim=1)
            draws |= {
                site: Draw(part) for group, part in zip(self.policy.heads, parts, strict=True) for site in group.sites
            }
            drawn.heads = keep_BH.mean(1)
        if self.tokens is not None:
            keep_BN = self._decide(self.tokens(x_BNC[:, prefix:]).squeeze(-1), self.policy.token_edge)
            drawn.tokens = keep_BN.mean(1)
            keep_BN = torch.cat([keep_BN.new_ones(len(keep_BN), prefix), keep_BN], dim=1)
            draws[f"{self.tap}{TOKENS}"] = TokenDraw(keep_BN, attention="outer", is_fixed_key=True)
        self.drawn = drawn if learns else None
        return draws

    def macs(self) -> float:
        """Per image, of the last forward: the map for tokens reads each of them."""
        per_image = [linear.out_features for linear in (self.heads, self.layers) if linear is not None]
        patches = self._num_patches if self.tokens is not None else 0
        return float(self.policy.width * (sum(per_image) + patches))

    def _decide(self, logit: Tensor, edge: float) -> Tensor:
        logit = logit.float() - self.threshold  # under autocast too: decisions near the edge would be lost
        if self.training and self.is_learning:
            return gumbel_sigmoid(logit, self.tau, edge, self.noise)
        return certain(logit, edge)


def readers(units: Units, unit: str) -> list[str]:
    """The linear layers of an FFN that make its hidden neurons."""
    hidden = units.groups.get(f"{unit}:hidden")
    members = () if hidden is None else hidden.members
    return [m.tensor.removesuffix(".weight") for m in members if m.axis == 0 and m.tensor.endswith(".weight")]


def _linear(width: int, outputs: int, bias: float) -> nn.Linear | None:
    if not outputs:
        return None
    linear = nn.Linear(width, outputs)
    nn.init.trunc_normal_(linear.weight, std=0.02)
    nn.init.constant_(linear.bias, bias)
    return linear
