"""Gates: what a strategy puts at a site of the model, and the state of one forward that all gates share.

A site is named by what it acts on: `blocks.0.attn` is a branch, `blocks.0.attn:heads` a group, `blocks.0` a whole
block, all of its branches at once, `blocks.0:tokens` or `blocks.0.mlp:tokens` are the tokens that enter a block or a
branch, and `blocks.0:output` those that leave a block (see `usdcore.tokens`).

Shape legend: B batch, N tokens, C width of the stream, n entries of a group.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor, nn

from usdcore.plans import TOKENS, is_token_site

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

    from usdcore.tokens.cores import Cores
    from usdcore.tokens.prices import Prices
    from usdcore.units.types import Group, Units

Scope = Literal["static", "batch", "sample", "token"]
Mode = Literal["auto", "masked", "skipping"]


@dataclass(frozen=True)
class Draw:
    """One decision at one site.

    `keep` is the factor on the branch's delta or on the group's entries, and what the cost counts: shape [] or [B] for
    a branch or a block, [n] or [B, n] for a group. `drop` is the weight of the path around the branch; None means
    `1 - keep` (a convex mixture, so that the stream itself passes unscaled). With `acts` false the cost counts `keep`
    and the forward is left as it is. `on` says the same as `keep` [] or [B] where the host knows it already, so that a
    forward that skips need not fetch it from the device (see `usdcore.deciding`).
    """

    keep: Tensor
    drop: Tensor | None = None
    acts: bool = True
    on: bool | tuple[bool, ...] | None = None


@dataclass(frozen=True)
class TokenDraw(Draw):
    """Which tokens a block or a branch computes: `keep` [N], or [B, N] for each image its own; the others pass it by.

    `index` [B, n] (ascending) may state the tokens that are kept, where each image keeps equally many: then nothing has
    to be counted, and the model can be exported. While all are computed (training), those left out are no keys of the
    others, only their own: the softmax's terms are multiplied by `keep` (`attention` "keys": by that of the key;
    "outer": also by that of the query), which passes it a gradient unless `is_fixed_key`. With `is_fixed_delta` no
    gradient passes by what the branch adds to a token.
    """

    index: Tensor | None = None
    attention: Literal["keys", "outer"] = "keys"
    is_fixed_key: bool = False
    is_fixed_delta: bool = False


@dataclass
class ForwardState:
    """What one forward of a gated model knows: how many forwards there were, the batch size, every draw made so far.

    `counts` are the numbers of tokens, [] or [B], that branches compute where it is not all. `key_weight` [B, N] says
    what the tokens of the stream now weigh as keys (those that stand for several), None for 1.
    """

    tick: int = 0
    batch_size: int = 0
    skips: bool = False  # what is off is left out, not multiplied by 0
    blocks: Mapping[str, tuple[str, ...]] = field(default_factory=dict)  # the branches of each block
    draws: dict[str, list[Draw]] = field(default_factory=dict)  # those that act
    static: dict[str, Tensor] = field(default_factory=dict)
    dynamic: dict[str, Tensor] = field(default_factory=dict)
    counts: dict[str, Tensor] = field(default_factory=dict)
    key_weight: Tensor | None = None
    #: The keys of the last attention in the block that now runs [R, N, d], mean over heads, and the images that it ran
    #: for (None for all); None where none ran.
    keys: Tensor | None = None
    key_rows: Tensor | None = None
    #: Of the blocks that a gate watches: what the first token looked at in the last attention there, [R, H, N].
    first_rows: dict[str, Tensor] = field(default_factory=dict)
    #: What a plugin's gates tell each other in one forward, and whoever looks after it, by the plugin's name.
    notes: dict[str, Any] = field(default_factory=dict)
    cores: Cores | None = None  # the attention of the block that now runs, where that is looked into
    #: Groups of which only what is on was computed, and those of which somewhere all was after all.
    partly: set[str] = field(default_factory=set)
    wholly: set[str] = field(default_factory=set)
    asked: set[str] = field(default_factory=set)  # the sites that the model came by
    rows: Tensor | None = None  # the samples for which a branch now runs, while it runs for some of the batch

    def __deepcopy__(self, memo: dict[int, object]) -> ForwardState:
        return ForwardState(self.tick, blocks=self.blocks)  # draws belong to a graph of autograd that can't be copied

    def record(self, draws: Mapping[str, Draw], is_static: bool) -> None:
        """Add the draws of one gate. Static and dynamic keeps are also held apart: the shrunk model has the former
        alone. The cost counts a block's keep on each of its branches.
        """
        side = self.static if is_static else self.dynamic
        for site, draw in draws.items():
            if draw.acts:
                self.draws.setdefault(site, []).append(draw)
            if is_token_site(site):
                self._count(site.removesuffix(TOKENS))
                continue
            for counted in self.blocks.get(site, (site,)):
                side[counted] = side[counted] * draw.keep if counted in side else draw.keep

    def factor(self, site: str) -> Tensor | None:
        """The product of the keep factors of all gates that act at `site`; None where there are none."""
        self.asked.add(site)
        draws = self.draws.get(site)
        if not draws:
            return None
        keep = draws[0].keep
        for draw in draws[1:]:
            keep = keep * draw.keep
        return keep

    def on(self, site: str, keep: Tensor) -> bool | tuple[bool, ...]:
        """What `keep` [] or [B], the factor at `site`, decides: fetched from the device if no gate has done so."""
        draws = self.draws[site]
        if len(draws) == 1 and draws[0].on is not None:
            return draws[0].on
        return bool(keep) if keep.ndim == 0 else tuple(bool(value) for value in keep.tolist())

    def see(self, keys: Tensor) -> None:
        """An attention has these keys, [R, H, N, d] or, heads and images along one axis, [R * H, N, d]."""
        images = self.batch_size if self.rows is None else len(self.rows)
        if keys.ndim == 3 and 0 < images < len(keys):
            keys = keys.view(images, -1, *keys.shape[1:])
        self.keys, self.key_rows = keys.mean(1) if keys.ndim == 4 else keys, self.rows

    def key_factor(self) -> Tensor | None:
        """`key_weight` as a factor of the softmax's terms [B, 1, 1, N], of the samples that now run."""
        if self.key_weight is None:
            return None
        own = self.key_weight if self.rows is None else self.key_weight[self.rows]
        return own[:, None, None]

    def _count(self, site: str) -> None:
        """Note how many tokens a block's or a branch's draws leave it."""
        keep = self.factor(site + TOKENS)
        assert keep is not None
        for name in self.blocks.get(site, (site,)):
            self.counts[name] = keep.sum(-1)

    def around(self, site: str) -> Tensor | None:
        """The weight of the stream itself at a branch: `keep + drop`; None where it is 1 (all gates convex).

        With a static pair (a0, a1) and a dynamic gate g this is g*a0 + (1-g)*a1: Eq. 8 of USDC as printed.
        """
        draws = self.draws.get(site, [])
        if all(draw.drop is None for draw in draws):
            return None
        keep = self.factor(site)
        assert keep is not None
        drop: Tensor | None = None
        for draw in draws:
            part = 1 - draw.keep if draw.drop is None else draw.drop
            drop = part if drop is None else drop * part
        assert drop is not None
        return keep + drop

    def keeps(self) -> dict[str, Tensor]:
        """What the cost counts: the product of all keeps of every branch and group that was drawn."""
        both = self.static.keys() & self.dynamic.keys()
        return self.static | self.dynamic | {site: self.static[site] * self.dynamic[site] for site in both}


class Gate(nn.Module):
    """Decides at one or several sites.

    A gate with `tap` None is drawn at the start of every forward; one whose `tap` names a block is given the stream
    that enters this block. In training mode draws may be soft or hard with a straight-through gradient; in evaluation
    mode they are exactly 0 or 1. `scope` says how many samples share a decision in evaluation.
    """

    sites: tuple[str, ...]
    tap: str | None = None
    scope: Scope = "static"
    threshold: float = 0.0
    paper_flops: int = 0  # what the gate costs by its paper's own rule: for reports, never for the budget
    is_neutral: bool = False
    #: Whether `threshold` changes what it decides: a gate that keeps a fixed number of tokens is not calibrated.
    has_threshold: bool = True
    #: How few tokens it may leave at its token sites.
    fewest_tokens: int = 1
    #: Blocks of whose attention it wants to know what the first token looks at, at `state.first_rows[block]`.
    watches: tuple[str, ...] = ()

    @property
    def is_dialled(self) -> bool:
        """Whether the threshold that is calibrated changes what it decides."""
        return self.has_threshold and self.scope != "static"

    def neutral(self, on: bool = True) -> None:
        """While on, every factor is exactly 1."""
        self.is_neutral = on

    def groups(self, model: nn.Module, units: Units) -> Iterable[Group]:
        """Groups of its own that the gate acts on, beside those of the model's units (see `usdcore.owngroups`)."""
        return ()

    def prepare(self, state: ForwardState) -> None:
        """Before a training forward that is compiled: put into `state.notes` what `draw` takes of Python's numbers that
        change from step to step, and of generators of its own. In a compiled forward they would be constants.
        """

    def draw(self, x_BNC: Tensor | None, state: ForwardState) -> dict[str, Draw]:
        """The decisions at this gate's sites. `x_BNC` is the stream at the tap, None for a gate without one."""
        raise TypeError(f"{type(self).__name__} does not say how it draws")

    def macs(self) -> Tensor | float:
        """Multiply-accumulates that the gate itself takes per sample; differentiable where a choice is searched."""
        return 0.0

    def neutral_draws(self) -> dict[str, Draw]:
        """Factors of exactly 1 at every site."""
        device = next((t.device for t in self.parameters()), torch.device("cpu"))
        return {site: Draw(torch.ones((), device=device)) for site in self.sites if not is_token_site(site)}


class Reducer(Gate):
    """Makes other tokens of those at its one token site, for all that follows: merges, replaces or restores them.

    What it leaves is what the site's block or branch, and all after it, are given, in training too; at a site
    `BLOCK:output`, what follows the block, or the head that reads the last one. It is called where the model
    comes by its site. With `needs_keys` it may ask `state.keys`, those of the attention before it in its block, None
    where that was skipped. Where tokens of its output stand for several, it sets `state.key_weight`, by which the terms
    of every later softmax are multiplied.
    """

    scope: Scope = "token"
    has_threshold = False
    needs_keys: bool = False

    def reduce(self, x_BNC: Tensor, state: ForwardState) -> Tensor:
        """The tokens [B, M, C]; for each image equally many."""
        raise TypeError(f"{type(self).__name__} does not say how it reduces tokens")

    def draw(self, x_BNC: Tensor | None, state: ForwardState) -> dict[str, Draw]:
        """No factors."""
        return {}


class Gating(nn.Module):
    """All gates of a model. It is the model's child `usdcore`, so gates are saved, moved and trained with the model."""

    def __init__(self) -> None:
        super().__init__()
        self.gates = nn.ModuleDict()
        self.mode: Mode = "auto"
        self.blocks: dict[str, tuple[str, ...]] = {}
        #: What branches and groups cost for n tokens, where that varies (see `usdcore.tokens.prices`).
        self.prices: Prices = {}
        self.state = ForwardState()

    def add(self, key: str, gate: Gate) -> None:
        """Put a gate under `key` (see `plans.gate_key`)."""
        self.gates[key] = gate
        for known in ("reducers", "by_tap"):
            self.__dict__.pop(known, None)

    def carry_over(self, old: Gating) -> None:
        """Take the weights of the gates in `old` that bear the same key."""
        for key, gate in self.gates.items():
            if key in old.gates:
                gate.load_state_dict(old.gates[key].state_dict())

    def all(self) -> Iterator[Gate]:
        """Every gate, in the order in which they were added."""
        for gate in self.gates.values():
            assert isinstance(gate, Gate)
            yield gate

    @cached_property
    def by_tap(self) -> dict[str | None, tuple[Gate, ...]]:
        """The gates that are drawn where the stream enters a block, and (None) at the start of a forward."""
        return {tap: tuple(gate for gate in self.all() if gate.tap == tap) for tap in {gate.tap for gate in self.all()}}

    @cached_property
    def reducers(self) -> dict[str, Reducer]:
        """The reducer of each token site that has one."""
        return {site: gate for gate in self.all() if isinstance(gate, Reducer) for site in gate.sites}

    def reduce(self, site: str, x_BNC: Tensor, where: str = TOKENS) -> Tensor:
        """The tokens that enter a block or a branch, or leave a block, after their reducer, if any."""
        gate, state = self.reducers.get(site + where), self.state
        if gate is None:
            return x_BNC
        state.asked.add(site + where)
        if gate.is_neutral or x_BNC.is_meta:
            return x_BNC
        with torch._C.DisableTorchFunction():  # what it computes is none of the host's attention
            reduced = gate.reduce(x_BNC, state)
        order = [branch for own in self.blocks.values() for branch in own]
        own = self.blocks.get(site, (site,))
        first = order.index(own[0]) if where == TOKENS else order.index(own[-1]) + 1
        for name in order[first:]:
            state.counts[name] = torch.full((), reduced.shape[1], device=reduced.device)
        return reduced

    def groups(self, model: nn.Module, units: Units) -> list[Group]:
        """Groups that gates bring."""
        return [group for gate in self.all() for group in gate.groups(model, units)]

    @property
    def skips(self) -> bool:
        """Whether a branch that is off is left out (evaluation) rather than computed and multiplied by 0 (training)."""
        return self.mode == "skipping" or (self.mode == "auto" and not self.training)

    def begin(self, batch_size: int) -> None:
        """Start a forward: forget the last one's draws and draw the gates that need no input."""
        self.state = ForwardState(self.state.tick + 1, batch_size, self.skips, self.blocks)
        self._draw(None, None)

    def prepare(self) -> None:
        """A forward that began goes on compiled."""
        for gate in self.all():
            gate.prepare(self.state)

    def enter(self, block: str, x_BNC: Tensor) -> None:
        """The stream enters `block`: draw the gates that tap it."""
        self._draw(block, x_BNC)

    def _draw(self, tap: str | None, x_BNC: Tensor | None) -> None:
        for gate in self.by_tap.get(tap, ()):
            draws = gate.neutral_draws() if gate.is_neutral else gate.draw(x_BNC, self.state)
            self.state.record(draws, is_static=gate.scope == "static")

    def macs(self) -> Tensor | float:
        """Multiply-accumulates of all gates per sample."""
        return sum((gate.macs() for gate in self.all()), start=0.0)

    def count_macs(self) -> int:
        """The same as a whole number, for what is decided."""
        return int(torch.as_tensor(self.macs(), dtype=torch.float64).detach())
