"""A strategy that does what a test says at each block: the gates of token and head sites, decided in advance."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from zoo import INPUT

from usdcore.gates import Draw, ForwardState, Gate, Scope, TokenDraw
from usdcore.owngroups import reading_group
from usdcore.plans import TOKENS
from usdcore.session import Session
from usdcore.strategy import Attachment, Budget, Strategy
from usdcore.units.types import BlockUnit, Group, Units

Say = Callable[[str, tuple[int, int]], Draw]


class Says(Gate):
    """Gives each of its sites what `say` answers for the site, given the numbers of images and tokens."""

    scope: Scope = "token"
    has_threshold = False

    def __init__(self, block: BlockUnit, sites: tuple[str, ...], say: Say) -> None:
        super().__init__()
        self.tap, self.sites, self.say = block.name, sites, say

    def draw(self, x_BNC: Tensor | None, state: ForwardState) -> dict[str, Draw]:
        assert x_BNC is not None
        return {site: self.say(site, (len(x_BNC), x_BNC.shape[1])) for site in self.sites}

    def groups(self, model: nn.Module, units: Units) -> list[Group]:
        block = next(b for b in units.blocks if b.name == self.tap)
        wanted = [site for site in self.sites if site.endswith(":columns")]
        return [reading_group(model, block, site, "columns", quarters(model, site)) for site in wanted]


def quarters(model: nn.Module, site: str) -> dict[str, Any]:
    """An FFN's input channels in four parts."""
    layer = site.replace(":columns", ".fc1")
    width = model.get_submodule(layer).in_features
    return {layer: np.arange(width) // (width // 4)}


class Acting(Strategy):
    """A `Says` at blocks 1 and 2, at the sites that `kinds` states of each."""

    def __init__(self, kinds: tuple[str, ...], say: Say, name: str = "acting") -> None:
        super().__init__(SimpleNamespace(use=name))
        self.kinds, self.say = kinds, say

    def attach(self, site: Attachment) -> None:
        for block in site.units.blocks[1:3]:
            sites = tuple(name for kind in self.kinds for name in _sites(block, kind))
            site.gate(block.name, Says(block, sites, self.say))


def _sites(block: BlockUnit, kind: str) -> list[str]:
    attention, ffn = block.units
    return {
        "tokens": [block.name + TOKENS],
        "ffn tokens": [ffn + TOKENS],
        "attention tokens": [attention + TOKENS],
        "branches": [attention, ffn],
        "block": [block.name],
        "heads": [f"{attention}:heads"],
        "columns": [f"{ffn}:columns"],
    }[kind]


def session(model: nn.Module, *strategies: Strategy, target: float = 0.97) -> Session:
    """With the strategies attached."""
    made = Session(model, torch.zeros(1, *INPUT), Budget("macs", target, batch_size=5, scope="sample"))
    made.begin_phase(strategies)
    made.model.eval()
    return made


def some(seed: int = 0, share: float = 0.6, **options: Any) -> Say:
    """Random decisions, other ones at each site, the first token always kept."""

    def say(site: str, shape: tuple[int, int]) -> Draw:
        generator = torch.Generator().manual_seed(seed + sum(map(ord, site)))
        if site.endswith(TOKENS):
            keep = (torch.rand(shape, generator=generator) < share).float()
            keep[:, 0] = 1
            return TokenDraw(keep, **options)
        size = (shape[0], 4) if ":" in site else (shape[0],)
        return Draw((torch.rand(size, generator=generator) < share).float())

    return say
