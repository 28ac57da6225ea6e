"""Gates that collapse: a branch that is off in every step of an epoch does not learn, and a group at its minimum has
nothing left to choose.

Each step's draws are there already. A site is looked at until it was seen on: at steps 1, 2, 4, 8, ... of an epoch the
maxima (over all processes) are read and the sites that were on are left alone, so nearly every step looks at nearly
nothing.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from usdcore.engine.processes import ALONE

if TYPE_CHECKING:
    from torch import Tensor

    from usdcore.engine.processes import Processes
    from usdcore.gates import Gating
    from usdcore.session import Session

#: A keep factor above this counts as on.
ON = 0.5


class Watch:
    """Over one epoch, the largest number of entries that each gate's site had on; 1 is a group's minimum, 0 a
    branch's.
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
        groups = self.session.units.groups
        return [
            (key, site)
            for key, gate in gating.gates.items()
            for site in gate.sites  # type: ignore[union-attr]
            if site not in groups or groups[site].size > 1
        ]

    def _least(self, site: str) -> int:
        return 1 if site in self.session.units.groups else 0

    def _on(self, gating: Gating, key: str, site: str) -> Tensor | None:
        """Entries on in this step (the most of any sample), shape []; None for a gate or site that is gone."""
        if key not in gating.gates:
            return None
        side = gating.state.static if gating.gates[key].scope == "static" else gating.state.dynamic
        if site not in side:
            return None
        on, group = (side[site].detach() > ON).float(), self.session.units.groups.get(site)
        if group is None:
            return on.max()
        return on.sum(dim=-1).max() if on.ndim else on * group.size
