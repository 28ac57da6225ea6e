"""The gate that UVC puts in the model: pairs of logits for what may be skipped, and the entries that its counts leave.

In training the entries are counted but not masked: their weights shrink instead. In evaluation they are masked, so that
what is measured is the compressed model.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from usdcore.gates import Draw, ForwardState, Gate

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

#: Initial logits (skip, execute).
START = (-1.0, 1.0)


class UvcGate(Gate):
    """`groups` has the number of entries of each group; `skips` names the blocks or branches that may be left out.

    `keep` [entries of all groups, in order] is set by the solver, with a gradient where R's slopes are wanted.
    """

    def __init__(self, groups: Mapping[str, int], skips: Sequence[str], tau: float, hard: bool) -> None:
        super().__init__()
        self.group_sizes = dict(groups)
        self.skips = tuple(skips)
        self.sites = (*groups, *skips)
        self.logits = nn.Parameter(torch.tensor([START] * len(skips)).reshape(-1, 2))
        self.tau, self.hard = tau, hard
        self.noise = 1.0
        self.constant: float | None = None  # a fixed weight of every block, while the gates do not act
        self.settled: Tensor | None = None  # 0 or 1 for each, once nothing is drawn any more
        self.keep: Tensor | None = None
        self.drawn: Tensor | None = None  # the execute weights of the last forward

    def __getstate__(self) -> dict[str, object]:
        # What belongs to a step's graph can't be copied (averaged weights deep-copy the model).
        return {**self.__dict__, "keep": None, "drawn": None}

    def settle(self, savings: Sequence[float], most: float, least: float) -> None:
        """Keep the decisions as they are, but for the weakest: what is off may save at most `most`, and where that is
        not more than allowed, at least `least`; each saves `savings`.
        """
        margins = self.margins.tolist()
        on, saved = [1.0] * len(margins), 0.0
        for margin, place in sorted((margin, place) for place, margin in enumerate(margins)):
            if (margin <= 0 or saved < least) and saved + savings[place] <= most:
                on[place], saved = 0.0, saved + savings[place]
        self.settled = self.logits.new_tensor(on)

    @property
    def margins(self) -> Tensor:
        """Execute logit less skip logit, [skips]."""
        return self.logits[:, 1] - self.logits[:, 0]

    def execute(self) -> Tensor:
        """Execute weights [skips] of this forward: a Gumbel-softmax over each pair, hard or relaxed."""
        if self.settled is not None:
            return self.settled
        if not self.training:
            return (self.margins > 0).to(self.logits.dtype)
        if self.constant is not None:
            return torch.full_like(self.margins, self.constant)
        margin = self.margins
        if self.noise > 0:
            uniform = torch.rand_like(margin).clamp_(1e-6, 1 - 1e-6)
            margin = margin + self.noise * (torch.log(uniform) - torch.log1p(-uniform))
        soft = torch.sigmoid(margin / self.tau)
        return (margin > 0).to(soft.dtype) + (soft - soft.detach()) if self.hard else soft

    def draw(self, x_BNC: Tensor | None, state: ForwardState) -> dict[str, Draw]:
        """One draw for the forward and for R."""
        draws = {}
        if self.keep is not None:
            keep = self.keep if self.training else self.keep.detach()
            parts = keep.split(list(self.group_sizes.values()))
            draws = {
                name: Draw(part, acts=not self.training) for name, part in zip(self.group_sizes, parts, strict=True)
            }
        if self.skips:
            self.drawn = self.execute()
            draws |= {name: Draw(part) for name, part in zip(self.skips, self.drawn.unbind(), strict=True)}
        return draws
