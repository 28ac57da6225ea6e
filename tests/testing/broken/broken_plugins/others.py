"""Gate networks, a split and a data source with something wrong."""

import random

import torch
from torch import nn
from torch.utils.data import TensorDataset

from usdcore.engine.data import DataSets


class Cheap(nn.Module):
    """Says that it costs nothing."""

    def __init__(self, config, width, outputs):
        super().__init__()
        self.head = nn.Linear(width, outputs)
        self.macs = 0
        self.paper_flops = 0

    def forward(self, pooled_BC):
        return self.head(pooled_BC)


class Mingling(Cheap):
    """Normalises over the batch in evaluation too."""

    def __init__(self, config, width, outputs):
        super().__init__(config, width, outputs)
        self.macs = width * outputs

    def forward(self, pooled_BC):
        return self.head(pooled_BC - 0.5 * pooled_BC.mean(0, keepdim=True))


class Rash:
    """Draws from torch's own generator."""

    def __init__(self, config):
        self.config = config

    def sizes(self, batch_size, generator):
        first = int(torch.randint(1, batch_size + 1, ()))
        return [first, batch_size - first] if first < batch_size else [first]


class Labelled(TensorDataset):
    def __getitem__(self, index):
        image, label = super().__getitem__(index)
        return image, int(label)


class Fickle:
    """Another fingerprint each time."""

    def __init__(self, config):
        self.config = config

    def load(self):
        size = self.config.input_size
        part = Labelled(torch.ones(8, 3, size, size), torch.zeros(8))
        mark = f"{random.getrandbits(256):064x}"
        return DataSets(part, part, part, num_classes=2, in_chans=3, description="ones", fingerprint=mark)
