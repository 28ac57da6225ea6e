"""Strategies that remove for good: two that are right, and what can be wrong with each."""

import torch
from torch import nn

from usdcore.gates import Draw, Gate
from usdcore.strategy import Decision, ParameterGroup, Strategy


class Ranked(Strategy):
    """Ranks entries by what their weights weigh, as they are when the phase ends."""

    def attach(self, site):
        self.model, self.units = site.model, site.units

    def weight(self, tensor):
        return dict(self.model.named_parameters())[tensor].detach().abs()

    def decide(self):
        scores = {}
        for group in self.units.groups.values():
            if group.reason is None:
                total = torch.zeros(group.size + 1)
                for member in group.members:
                    weight = self.weight(member.tensor).movedim(member.axis, 0)
                    entry_of = torch.from_numpy(member.entry_of) % (group.size + 1)
                    total.index_add_(0, entry_of, weight.reshape(len(entry_of), -1).sum(1))
                scores[group.name] = total[:-1] / total[:-1].mean()
        return Decision(scores=scores, ranking=True)


class Forgetful(Ranked):
    """Sums up gradients, and does not save the sums."""

    def __init__(self, config):
        super().__init__(config)
        self.sums = {}

    def after_backward(self, ctx):
        for name, parameter in self.model.named_parameters():
            if parameter.grad is not None:
                self.sums[name] = self.sums.get(name, 0) + parameter.grad.abs() * 10 ** (3 - ctx.step)

    def weight(self, tensor):
        sums = self.sums.get(tensor)
        weight = super().weight(tensor)
        return weight if sums is None or sums.shape != weight.shape else sums

    def decide(self):
        decision = super().decide()
        self.sums = {}
        return decision


class OwnEyes(Ranked):
    """Decides from what its own process alone has seen."""

    def __init__(self, config):
        super().__init__(config)
        self.seen = 0.0

    def begin_step(self, ctx):
        self.seen += float(ctx.images.sum())

    def state_dict(self):
        return {"seen": self.seen}

    def load_state_dict(self, state):
        self.seen = state["seen"]


class Missing(Ranked):
    """Removes one branch, whatever the budget is."""

    def decide(self):
        return Decision(drops=tuple(name for name, branch in self.units.branches.items() if branch.reason is None)[:1])


class Meddling(Ranked):
    """Changes weights after it has decided."""

    def records(self, gone, rates, settle):
        with torch.no_grad():
            for parameter in self.model.parameters():
                parameter.mul_(0.9)
        return []


class BranchGate(Gate):
    """A learned number for each branch."""

    def __init__(self, sites):
        super().__init__()
        self.sites = tuple(sites)
        self.logits = nn.Parameter(torch.linspace(0.5, 1.5, len(self.sites)))

    def draw(self, x_BNC, state):
        keep = torch.sigmoid(self.logits) if self.training else (self.logits > 0).float()
        return {site: Draw(keep[i]) for i, site in enumerate(self.sites)}


class Gated(Strategy):
    """Learns which branches go."""

    make_gate = BranchGate
    term = "gated"

    def attach(self, site):
        self.gate = type(self).make_gate([b.name for b in site.units.branches.values() if b.reason is None])
        self.place(site)
        site.gate("model", self.gate)
        site.param_group(ParameterGroup([self.gate.logits], lr=0.01))

    def place(self, site):
        """Before the gate is put in the model."""

    def losses(self, ctx):
        return {self.term: (ctx.spent - 0.5) ** 2}

    def decide(self):
        self.learned = self.gate.logits.detach().clone()
        return Decision(scores=dict(zip(self.gate.sites, self.learned, strict=True)), ranking=True)


class TiltedGate(BranchGate):
    def neutral_draws(self):
        return {site: Draw(torch.tensor(1.01)) for site in self.sites}


class NotNeutral(Gated):
    """Factors of 1.01 where they should be 1."""

    make_gate = TiltedGate


class Unread(Gated):
    """Decides about all branches when the stream enters the last block: too late for the others."""

    def place(self, site):
        self.gate.tap = site.units.blocks[-1].name


class Idle(Gated):
    """Trains a parameter on which nothing depends."""

    def place(self, site):
        site.param_group(ParameterGroup([nn.Parameter(torch.zeros(3))]))


class Shouting(Gated):
    """Names its loss term as others do theirs."""

    term = "resource"
