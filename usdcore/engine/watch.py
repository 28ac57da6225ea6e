"""Gates that collapse: a branch that is off in every step of an epoch does not learn, a group at its minimum has
nothing left to choose, and where every patch is left out a block sees no image.

Each step's draws are there already. A site is looked at until it was seen on: at steps 1, 2, 4, 8, ... of an epoch the
maxima (over all processes) are read and the sites that were on are left alone, so nearly every step looks at nearly
nothing.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from usdcore.engine.drawn import drawn_at
from usdcore.engine.processes import ALONE
from usdcore.errors import UsdcoreError
from usdcore.plans import is_token_site
from usdcore.tokens import prefix_tokens

if TYPE_CHECKING:
    from torch import Tensor

    from usdcore.engine.processes import Processes
    from usdcore.gates import Gating
    from usdcore.session import Session

#: A keep factor above this counts as on.
ON = 0.5


class Watch:
    """Over one epoch, the largest number of entries that each gate's site had on; 1 is a group's minimum, 0 a
    branch's, and that of tokens the class, distillation and register tokens.
    """

    def __init__(self, session: Session, processes: Processes = ALONE) -> None:
        self.session, self.processes = session, processes
        self.steps = 0
        self.most: dict[tuple[str, str], Tensor] | None = None  # by gate and site; None before the epoch's first step

    def look(self) -> None:
        """After a training step's forward."""
        gating = self.session.gating
        if gating is None:
            return
        if self.most is None:
            self.most = {place: torch.zeros(()) for place in self._places(gating)}
        self.steps += 1
        for key, site in list(self.most):
            now = self._on(gating, key, site)
            if now is None:
                del self.most[key, site]
            else:
                self.most[key, site] = torch.maximum(self.most[key, site].to(now.device), now)
        if self.steps & (self.steps - 1) == 0:
            self._share()
            self.most = {place: most for place, most in self.most.items() if float(most) <= self._least(place[1])}

    def epoch(self) -> list[dict[str, str]]:
        """The epoch is over: the gates that collapsed in it, as `strategy`, `site` and `text`."""
        self._share()
        found = []
        for (key, site), most in (self.most or {}).items():
            if float(most) > self._least(site):
                continue
            strategy = key.partition("@")[0].replace("/", ".")
            if site in self.session.units.groups:
                kind = self.session.units.groups[site].kind
                text = f"{strategy} kept at most {int(most)} of the {kind} of {site.rpartition(':')[0]} in every step"
            elif is_token_site(site):
                text = f"{strategy} left no patch of any image at {site} in any step"
            else:
                text = f"{strategy} kept {site} off in every step, so it learned nothing"
            found.append({"strategy": strategy, "site": site, "text": text})
        self.steps, self.most = 0, None
        return found

    def state_dict(self) -> dict[str, Any]:
        """What the rest of the epoch needs."""
        self._share()
        if self.most is None:
            return {"steps": self.steps, "most": None}
        return {"steps": self.steps, "most": [[*place, float(most)] for place, most in self.most.items()]}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on in the middle of an epoch."""
        self.steps, most = state["steps"], state["most"]
        self.most = None if most is None else {(key, site): torch.tensor(value) for key, site, value in most}

    def _share(self) -> None:
        """Take the largest over processes: they have the same sites, and saw others of a batch's images."""
        if self.most and not self.processes.is_alone:
            largest = self.processes.largest(torch.stack(list(self.most.values())))
            self.most = dict(zip(self.most, largest.unbind(), strict=True))

    def _places(self, gating: Gating) -> list[tuple[str, str]]:
        groups, places = self.session.units.groups, []
        for key, gate in gating.gates.items():
            sites: tuple[str, ...] = gate.sites  # type: ignore[assignment]
            tokens = [site for site in sites if is_token_site(site)]
            left_out = tokens[1:]  # a gate of several blocks says the same at each of them
            places += [(key, s) for s in sites if s not in left_out and (s not in groups or groups[s].size > 1)]
        return places

    def _least(self, site: str) -> int:
        if not is_token_site(site):
            return 1 if site in self.session.units.groups else 0
        name = site.rpartition(":")[0]
        for block in self.session.units.blocks:
            if name == block.name or name in block.units:
                try:
                    return prefix_tokens(self.session.model, block)
                except UsdcoreError:  # the gate knows, the model does not tell
                    return 0
        return 0

    def _on(self, gating: Gating, key: str, site: str) -> Tensor | None:
        """Entries on in this step (the most of any sample), shape []; None for a gate or site that is gone."""
        keep = drawn_at(gating, key, site)
        if keep is None:
            return None
        on, group = (keep.detach() > ON).float(), self.session.units.groups.get(site)
        if is_token_site(site):
            return on.sum(dim=-1).max()
        if group is None:
            return on.max()
        return on.sum(dim=-1).max() if on.ndim else on * group.size
