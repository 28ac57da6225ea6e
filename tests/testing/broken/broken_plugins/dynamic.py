"""A strategy that skips by the image, and what can be wrong with it."""

import torch
from torch import nn

from usdcore.gates import Draw, Gate
from usdcore.plans import Attach
from usdcore.strategy import Decision, ParameterGroup, Strategy


class StreamGate(Gate):
    """A linear map of the mean token says which branches of a block run."""

    def __init__(self, block, sites, width):
        super().__init__()
        self.tap, self.sites, self.width, self.scope = block, tuple(sites), width, "sample"
        self.net = nn.Linear(width, len(self.sites))

    def draw(self, x_BNC, state):
        logits = self.net(x_BNC.mean(1))
        hard = (logits > self.threshold).float()
        keep = hard + torch.sigmoid(logits) - torch.sigmoid(logits).detach() if self.training else hard
        return {site: Draw(keep[:, i]) for i, site in enumerate(self.sites)}

    def macs(self):
        return float(self.width * len(self.sites))


class Skipping(Strategy):
    """A gate for each block, kept in the compressed model."""

    make_gate = StreamGate

    def attach(self, site):
        if not self.gates:
            for block in site.units.blocks:
                sites = [branch.name for branch in block.branches if branch.reason is None]
                if sites:
                    site.gate(block.name, type(self).make_gate(block.name, sites, block.width))
        site.param_group(ParameterGroup([p for gate in self.gates.values() for p in gate.parameters()]))

    def losses(self, ctx):
        return {f"{self.config.use}_spent": (ctx.spent - 0.5) ** 2}

    def decide(self):
        return Decision()

    def records(self, gone, rates, settle):
        found = []
        for block, gate in self.gates.items():
            sites = [site for site in gate.sites if site not in gone]
            if len(sites) == len(gate.sites):
                config = {"sites": sites, "width": gate.width, "threshold": gate.threshold}
                found.append(
                    Attach(
                        site=block, plugin=self.config.use, distribution="broken_plugins", version="0.1", config=config
                    )
                )
        return found

    @classmethod
    def rebuild(cls, record):
        gate = cls.make_gate(record.site, record.config["sites"], record.config["width"])
        gate.threshold = record.config["threshold"]
        return gate


class Lossy(Skipping):
    """Does not put the threshold back."""

    @classmethod
    def rebuild(cls, record):
        return cls.make_gate(record.site, record.config["sites"], record.config["width"])


class FreeGate(StreamGate):
    def macs(self):
        return 0.0


class Miscounting(Skipping):
    """Says that its gates cost nothing."""

    make_gate = FreeGate


class ItemGate(StreamGate):
    def draw(self, x_BNC, state):
        if x_BNC.mean().item() > 1e9:
            raise ValueError("a large stream")
        return super().draw(x_BNC, state)


class Itemised(Skipping):
    """Looks at a value, which no exported program can."""

    make_gate = ItemGate
