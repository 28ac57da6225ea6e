"""The gate of one layer: pooled tokens, a gate network (or a mixture of candidates), group-level decisions.

Shape legend: B batch, N tokens, C width, S decisions of the layer (MHSA, FFN), D of all layers, G groups.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from usdcore.deciding import decided, pooled
from usdcore.devices import sent
from usdcore.gates import Draw, ForwardState, Gate, Scope
from usdcore.groups import group_ids
from usdcore_usdc.relax import logistic_noise, straight_through

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence


class Groups:
    """One drawing: the group of each sample [B], the size of each group [G]; `decisions` are all that layers make."""

    def __init__(self, ids_B: Tensor, sizes_G: Tensor, decisions: int) -> None:
        self.ids_B, self.sizes_G, self.decisions = ids_B, sizes_G, decisions

    @cached_property
    def noise(self) -> Tensor:
        """Standard logistic noise [G, D] on all decisions, in one draw: it does not depend on what layers read."""
        return logistic_noise(torch.empty(len(self.sizes_G), self.decisions, device=self.sizes_G.device))


class Grouping:
    """Which samples of a training batch share a decision, and their noise; drawn once per forward, or per layer.

    `decisions` is how many all layers that share it make.
    """

    def __init__(self, split: object, per_layer: bool) -> None:
        self.split = split
        self.per_layer = per_layer
        self.decisions = 0
        self._drawn: tuple[int, Groups] | None = None

    def draw(self, batch_size: int, tick: int, device: torch.device) -> Groups:
        """The groups of the forward number `tick`."""
        if self.per_layer or self._drawn is None or self._drawn[0] != tick or len(self._drawn[1].ids_B) != batch_size:
            sizes = self.split.sizes(batch_size, torch.default_generator)  # type: ignore[attr-defined]
            ids = group_ids(sizes, torch.default_generator, device)
            self._drawn = (tick, Groups(ids, sent(sizes, device), self.decisions))
        return self._drawn[1]


@dataclass(frozen=True)
class Shared:
    """What a layer's decisions of one forward share: the group of each sample [B]; the size of each group [B] (1 in the
    place of those that are none, so that shapes do not vary); its own noise [B, S], None without any.
    """

    ids: Tensor
    sizes: Tensor
    noise: Tensor | None


class LayerGate(Gate):
    """Decides from the stream that enters a block which of its branches run (USDC Eq. 5, 6; Fig. 2).

    `columns` names the branch that each output of the network decides; None for one that is decided for good already.
    With several `networks` their logits are mixed by learned weights (a^g) until `commit` keeps the best alone.
    """

    def __init__(
        self, block: str, columns: Sequence[str | None], networks: Mapping[str, nn.Module], scope: Scope
    ) -> None:
        super().__init__()
        self.tap = block
        self.columns = tuple(columns)
        self.sites = tuple(name for name in columns if name is not None)
        self.scope = scope
        self.networks = nn.ModuleDict(networks)
        self.choice = nn.Parameter(torch.zeros(len(networks))) if len(networks) > 1 else None
        if self.choice is not None:  # the MACs of each network, where its weight is
            macs = [float(network.macs) for network in networks.values()]  # type: ignore[arg-type]
            self.register_buffer("prices", torch.tensor(macs), persistent=False)
        self.grouping: Grouping | None = None
        self.place = slice(0, 0)  # where its decisions lie among all that share the grouping
        self.width = 0
        self.tau = 1.0
        self.noise = 0.0
        self.gumbel = False
        self.seen: Tensor | None = None  # the logits [B, S] of the last training forward
        self.mixture: Tensor | None = None  # the candidates' weights in the last training forward
        self.configs: dict[str, Any] = {}  # the options of each network, for the record

    def __getstate__(self) -> dict[str, Any]:
        # What belongs to a forward is part of its graph, which a deepcopy (for averaged weights) can't take.
        return {**self.__dict__, "seen": None, "mixture": None}

    def weights(self) -> Tensor:
        """Softmax of the choice over candidates [K]; with Gumbel noise in training where that is asked for."""
        assert self.choice is not None
        if self.gumbel and self.training:
            return nn.functional.gumbel_softmax(self.choice, tau=self.tau)
        return torch.softmax(self.choice, dim=0)

    def logits(self, pooled_BC: Tensor) -> Tensor:
        """Gate features [B, S], from the mean over all tokens of the stream."""
        # In float32 under autocast too: sigmoid and its logarithms saturate early in bfloat16.
        outputs = [network(pooled_BC).float() for network in self.networks.values()]
        if len(outputs) == 1:
            return outputs[0]
        weights = self.weights()
        self.mixture = weights if self.training else None
        return (weights[:, None, None] * torch.stack(outputs)).sum(0)

    def prepare(self, state: ForwardState) -> None:
        """Draw the groups and their noise before the forward."""
        if self.training and self.grouping is not None:
            device = next(self.networks.parameters()).device
            state.notes[f"usdc {self.tap}"] = self._shared(state.batch_size, state, device)

    def draw(self, x_BNC: Tensor | None, state: ForwardState) -> dict[str, Draw]:
        """Training: a shared decision per group, straight-through. Evaluation: per batch or per sample, at the
        threshold.

        A gate that is trained without its strategy (a loaded model in plain PyTorch) decides as in evaluation, and is
        not learned.
        """
        assert x_BNC is not None
        logits_BS = self.logits(pooled(x_BNC, state))
        if self.training or self.seen is not None:  # setting a module's attribute is slow beside a small network
            self.seen = logits_BS if self.training else None
        if self.training and self.grouping is not None:
            draws = [Draw(keep) for keep in self._grouped(logits_BS, state).unbind(-1)]
        else:
            draws = decided(logits_BS, self.threshold, self.scope, state)
        return {name: draw for name, draw in zip(self.columns, draws, strict=True) if name is not None}

    def macs(self) -> Tensor | float:
        """Of the candidates, by their weights (Eq. 10), or of the one that is left."""
        if self.choice is None:
            return float(self.networks[self.network_name].macs)  # type: ignore[arg-type]
        weights = self.weights() if self.mixture is None else self.mixture
        return (weights * self.prices).sum()

    @property
    def paper_flops(self) -> int:  # type: ignore[override]
        """2*in*out+out summed over the network's linear maps, the rule that gives the paper's 0.89M and 0.02M."""
        return int(self.networks[self.network_name].paper_flops)  # type: ignore[arg-type]

    @property
    def network_name(self) -> str:
        """The registered name of the network with the largest weight."""
        best = 0 if self.choice is None else int(self.choice.detach().argmax())
        return list(self.networks)[best]

    def commit(self, name: str | None = None) -> None:
        """Keep one network alone: `name`, or the one with the largest weight."""
        name = name or self.network_name
        self.networks = nn.ModuleDict({name: self.networks[name]})
        self.choice = self.mixture = None

    def _grouped(self, logits_BS: Tensor, state: ForwardState) -> Tensor:
        shared: Shared | None = state.notes.get(f"usdc {self.tap}")
        if shared is None or len(shared.ids) != len(logits_BS):  # a block may be given several rows of each image
            shared = self._shared(len(logits_BS), state, logits_BS.device)
        mean_BS = torch.zeros_like(logits_BS).index_add(0, shared.ids, logits_BS) / shared.sizes[:, None]
        if shared.noise is not None:
            mean_BS = mean_BS + shared.noise
        return straight_through(mean_BS - self.threshold, self.tau)[shared.ids]

    def _shared(self, batch_size: int, state: ForwardState, device: torch.device) -> Shared:
        assert self.grouping is not None
        groups = self.grouping.draw(batch_size, state.tick, device)
        rest = batch_size - len(groups.sizes_G)
        noise = self.noise * nn.functional.pad(groups.noise[:, self.place], (0, 0, 0, rest)) if self.noise > 0 else None
        return Shared(groups.ids_B, nn.functional.pad(groups.sizes_G, (0, rest), value=1), noise)
