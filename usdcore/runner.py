"""Run a gated model: compute every branch and mask it (training), or leave out what is off (evaluation).

In a block's own code the sums `x + branch(x)` of gated branches become calls of `add_branch` (see `usdcore.rewrite`);
parameters, names and every other expression of the host stay. What they ask is an object in the block that holds
modules, not closures, so that a deepcopy of the model has its own.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor, nn

from usdcore import rewrite
from usdcore.devices import sent
from usdcore.errors import UsdcoreError
from usdcore.gates import Gating, Mode
from usdcore.masking import GroupMask, MaskedLinear, mask
from usdcore.multihead import open_up
from usdcore.partly import PartlyForward, linears, on_now
from usdcore.passages import close, module_at
from usdcore.plans import OUTPUT, TOKENS
from usdcore.tokens.blocks import varied_blocks
from usdcore.tokens.cores import Cores
from usdcore.tokens.prices import token_prices
from usdcore.tokens.select import gathered, masked
from usdcore.units.types import AttentionUnit, is_width

if TYPE_CHECKING:
    from collections.abc import Callable

    from usdcore.gates import TokenDraw
    from usdcore.rewrite import Edit
    from usdcore.units.types import BlockUnit, Branch, Units

CHILD = "usdcore"


class BlockForward:
    """The forward of a gated block: the host's own, between the gates that tap its stream and those of the block.

    With `looks` its attention is looked into (see `usdcore.tokens.cores`), for what reduces tokens; `heads` is the
    group of its attention of which some entries are computed for some images (see `usdcore.partly`).
    """

    def __init__(
        self, owner: nn.Module, block: BlockUnit, gating: Gating, looks: bool = False, heads: str | None = None
    ) -> None:
        self.owner = owner
        self.name = block.name
        self.branches = tuple(branch.name for branch in block.branches)
        self.is_channels_first = block.channel_axis == 1
        self.gating = gating
        self.looks = looks
        self.heads = heads
        inner = (gating.reducers.get(name + TOKENS) for name in (block.name, *self.branches))
        self.sees = any(gate is not None and gate.needs_keys for gate in inner)
        self.is_watched = any(self.name in gate.watches for gate in gating.all())

    def host(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """What the block's own code gives."""
        out: Tensor = type(self.owner).forward(self.owner, x, *args, **kwargs)
        return out

    def __call__(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """The block's output for the stream x, [B, N, C], [B, H, W, C] or [B, C, H, W]."""
        self.gating.enter(self.name, self._tokens(x))
        x = self.gating.reduce(self.name, x)
        is_partly = self.heads is not None and on_now(self.gating, self.heads) is not None
        run = self._looked_into if self.looks or self.is_watched or is_partly else self._gated
        return self.gating.reduce(self.name, run(x, args, kwargs), OUTPUT)

    def _looked_into(self, x: Tensor, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor:
        """The same, with an eye on its attention."""
        state = self.gating.state
        state.keys = state.key_rows = None
        see = state.see if self.sees else None
        see_row = partial(state.first_rows.__setitem__, self.name) if self.is_watched else None
        state.cores = Cores(x.shape[1], state.key_factor, see, self._pairs, see_row)
        with state.cores:
            out = self._gated(x, args, kwargs)
        if state.cores.caught:
            state.partly.add(str(self.heads))
        state.cores = None
        return out

    def _pairs(self) -> Tensor | None:
        """The pairs of image and head that are on."""
        return None if self.heads is None else on_now(self.gating, self.heads)

    def _gated(self, x: Tensor, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor:
        """The block's output under its own gates."""

        def run(rows: Tensor) -> Tensor:
            return self._selected(self.name, rows, lambda tokens: self.host(tokens, *args, **kwargs))

        state, keep = self.gating.state, self.gating.state.factor(self.name)
        if keep is None:
            return run(x)
        if self.gating.skips:
            return self._skip(self.name, x, x, keep, lambda _, rows: run(rows), (*args, *kwargs.values()))
        around, weight, out = state.around(self.name), _rows(keep, x), run(x)
        if around is None:  # exactly `out` where the weight is 1
            return torch.lerp(x, out.to(x.dtype), weight.expand_as(x))
        return weight * out + (_rows(around, x) - weight) * x

    def add(
        self, name: str, skip: Tensor, stream: Tensor, branch: Callable[[Tensor], Tensor], options: tuple[Any, ...]
    ) -> Tensor:
        """`skip + branch(stream)` under the gates of the branch, which reads `options` too.

        `stream` is what `skip` was, but for identities.
        """
        reduced = self.gating.reduce(name, skip)
        if reduced is not skip:
            skip = stream = reduced
            if self.gating.state.cores is not None:
                self.gating.state.cores.num_tokens = skip.shape[1]
        if self.gating.state.factor(name + TOKENS) is not None:
            return self._add_selected(name, skip, branch, options)
        keep = self.gating.state.factor(name)
        if keep is None:
            return skip + branch(stream)
        if self.gating.skips:
            return self._skip(name, skip, stream, keep, lambda rest, rows: rest + branch(rows), options)
        around = self.gating.state.around(name)
        passed = skip if around is None else _rows(around, skip) * skip
        return torch.addcmul(passed, _rows(keep, skip), branch(stream))

    def _add_selected(
        self, name: str, stream: Tensor, branch: Callable[[Tensor], Tensor], options: tuple[Any, ...]
    ) -> Tensor:
        """The same for some of the tokens."""

        def run(_: Tensor, rows: Tensor) -> Tensor:
            return self._selected(name, rows, lambda tokens: tokens + branch(tokens))

        keep = self.gating.state.factor(name)
        if keep is None:
            return run(stream, stream)
        if self.gating.skips:
            return self._skip(name, stream, stream, keep, run, options)
        around = self.gating.state.around(name)
        passed = stream if around is None else _rows(around, stream) * stream
        return passed + _rows(keep, stream) * (run(stream, stream) - stream)

    def _selected(self, site: str, x: Tensor, run: Callable[[Tensor], Tensor]) -> Tensor:
        """`run` for the tokens that the site's gates select."""
        state = self.gating.state
        keep = state.factor(site + TOKENS)
        if keep is None or keep.is_meta:
            return run(x)
        draws = cast("list[TokenDraw]", state.draws[site + TOKENS])
        if self.gating.skips:
            return gathered(x, draws, keep, run, state)
        return masked(x, draws, keep, run)

    def _skip(
        self,
        site: str,
        skip: Tensor,
        x: Tensor,
        keep: Tensor,
        run: Callable[[Tensor, Tensor], Tensor],
        options: tuple[Any, ...],
    ) -> Tensor:
        """`run` for the rows of `skip` and `x` that `keep`, the factor at `site`, has on; those of `skip` pass
        otherwise.
        """
        state = self.gating.state
        if keep.is_meta:  # a traced model has no decisions: show every branch
            return run(skip, x)
        decisions = state.on(site, keep)
        if isinstance(decisions, bool):
            return run(skip, x) if decisions else skip
        outer = state.rows
        if outer is not None:
            decisions = tuple(decisions[row] for row in outer.tolist())
        on = [row for row, is_on in enumerate(decisions) if is_on]
        if len(on) in (0, len(x)):
            return run(skip, x) if on else skip
        if any(isinstance(option, Tensor) and option.shape[:1] == x.shape[:1] for option in options):
            msg = f"{self.name}: the block was called with more than the stream (an attention mask for each image?), "
            raise UsdcoreError(msg + "which a block that skips for some images does not take")
        rows = sent(on, x.device)
        state.rows = rows if outer is None else outer[rows]
        chosen = x.index_select(0, rows)
        made = run(chosen if skip is x else skip.index_select(0, rows), chosen)
        state.rows = outer
        return skip.index_copy(0, rows, made.to(skip.dtype))

    def _tokens(self, x: Tensor) -> Tensor:
        """The stream as [B, N, C]."""
        if x.ndim < 4:
            return x
        return x.flatten(2).transpose(1, 2) if self.is_channels_first else x.flatten(1, -2)


def add_branch(
    owner: nn.Module, number: int, skip: Tensor, stream: Tensor, branch: Callable[[Tensor], Tensor], *options: Any
) -> Tensor:
    """What stands in the place of `skip + branch(stream)` in the code of a gated block: branch `number` of it."""
    forward: BlockForward = owner.__dict__["forward"]
    return forward.add(forward.branches[number], skip, stream, branch, options)


class Begin:
    """A forward pre-hook of the whole model: a new forward starts."""

    def __init__(self, gating: Gating) -> None:
        self.gating = gating

    def __call__(self, module: nn.Module, args: tuple[Any, ...]) -> None:
        """Draw the static gates for this forward."""
        self.gating.begin(args[0].shape[0] if args else 0)


def gating_of(model: nn.Module) -> Gating | None:
    """The gates of a model, or None."""
    child = model._modules.get(CHILD)
    return child if isinstance(child, Gating) else None


def attach(model: nn.Module, units: Units, gating: Gating) -> None:
    """Make `model` run under `gating`, in place. Errors: a gate at a site that can't be gated, with the reason."""
    if CHILD in dict(model.named_children()):
        msg = f"the model already has a child named {CHILD!r}: detach its gates first"
        raise UsdcoreError(msg)
    open_up(model)
    model.add_module(CHILD, gating)
    model.register_forward_pre_hook(Begin(gating))
    sites = {site for gate in gating.all() for site in gate.sites}
    taps = {gate.tap for gate in gating.all()}
    watched = {name for gate in gating.all() for name in gate.watches}
    gating.blocks = {block.name: tuple(branch.name for branch in block.branches) for block in units.blocks}
    varied = varied_blocks(units, gating)
    gating.prices = token_prices(model, units, varied.values())
    partly = _compute_partly(model, units, gating)
    for block in units.blocks:
        if sites & {block.name, block.name + TOKENS}:
            _require(block.reason, block.name, "gated")
        gated = [branch for branch in block.branches if sites & {branch.name, branch.name + TOKENS}]
        inner = [branch.name for branch in gated if branch.name + TOKENS in gating.reducers]
        if inner and block.name in sites:
            msg = f"{block.name} can't be skipped as a whole, as there are fewer tokens from {inner[0]} on: let its "
            raise UsdcoreError(f"{msg}branches be skipped one by one")
        for branch in gated:
            _require(branch.reason, branch.name, "gated")
        looks = bool(gating.reducers) and block.name in varied
        heads = partly.get(block.name)
        own = {block.name, block.name + TOKENS, block.name + OUTPUT}
        if gated or looks or heads or sites & own or block.name in taps | watched:
            owner = model.get_submodule(block.name)
            owner.__dict__["forward"] = BlockForward(owner, block, gating, looks, heads)
            rewrite.edit(owner, [_edit(block, branch) for branch in gated], add_branch)
    for name, group in units.groups.items():
        if name in sites:
            _require(group.reason, name, "pruned")
            for point in group.masks:
                mask(module_at(model, point.module, point.edit), point, gating, name)
    for name in sorted(filter(is_width, sites)):
        _require(_why_no_mask(units, name), name, "gated")
    places = set(units.branches) | set(gating.blocks)
    tokens = {name + TOKENS for name in places} | {name + OUTPUT for name in gating.blocks}
    unknown = sites - places - tokens - set(units.groups)
    if unknown:
        msg = f"no such branch, block or group in this model: {', '.join(sorted(unknown))}"
        raise UsdcoreError(msg)


def _compute_partly(model: nn.Module, units: Units, gating: Gating) -> dict[str, str]:
    """Let linear layers compute the entries that gates decide about for each image for those images alone, in place.
    Returns the group of heads of each block with one such attention.
    """
    sites = {site for gate in gating.all() if gate.scope != "static" for site in gate.sites}
    layers = {g.name: linears(model, g) or {} for g in units.groups.values() if g.name in sites and g.reason is None}
    found: dict[str, str] = {}
    for block in units.blocks:
        inside = [unit for unit in units.all if unit.branch is not None and unit.branch in block.branches]
        heads = [g for unit in inside if isinstance(unit, AttentionUnit) for g in unit.groups if g.kind == "heads"]
        if len(heads) == 1 and layers.get(heads[0].name):
            found[block.name] = heads[0].name
        for group in (g for unit in inside for g in unit.groups if g.kind != "heads" or g.name in found.values()):
            for path, (entry_of, axis) in layers.get(group.name, {}).items():
                module = cast("nn.Linear", model.get_submodule(path))
                module.__dict__["forward"] = PartlyForward(module, gating, group, entry_of, axis)
    return found


def _why_no_mask(units: Units, name: str) -> str | None:
    """Why the width of a stream can't be masked."""
    group = units.group(name)
    if group is None:
        return units.widths.reason
    if group.reason is not None or not group.norms:
        return group.reason or "its channels are read in many places, and none masks them all; rank them instead"
    return (
        f"{group.norms[0]} normalises over all of its channels, so zeros in their place are not what is left without "
        f"them; a strategy may rank them (prune with `width: true`), not gate them"
    )


def detach(model: nn.Module) -> Gating | None:
    """Take the gates off again, in place; returns them. Branches that were removed for good stay removed.

    Hooks are found by their type: a handle kept from `attach` would not follow a deepcopy of the model.
    """
    gating = gating_of(model)
    if gating is None:
        return None
    del model._modules[CHILD]
    for module in model.modules():
        for hooks in (module._forward_pre_hooks, module._forward_hooks):
            for key, hook in list(hooks.items()):
                if isinstance(hook, GroupMask | Begin):
                    del hooks[key]
        if isinstance(module.__dict__.get("forward"), BlockForward):
            rewrite.unedit(module, "gate")
        if isinstance(module.__dict__.get("forward"), BlockForward | PartlyForward | MaskedLinear):
            del module.__dict__["forward"]
    close(model)
    return gating


def _edit(block: BlockUnit, branch: Branch) -> Edit:
    assert branch.sum is not None
    return branch.sum.edit("gate", block.branches.index(branch))


def set_mode(model: nn.Module, mode: Mode) -> None:
    """`auto` masks in training and skips in evaluation; `masked` and `skipping` force one of them."""
    gating = gating_of(model)
    if gating is not None:
        gating.mode = mode


def _rows(factor: Tensor, x: Tensor) -> Tensor:
    """A factor per batch ([]) or per sample ([B]), shaped to multiply x [B, ...]."""
    factor = factor.to(x.dtype)
    return factor if factor.ndim == 0 else factor.reshape(-1, *[1] * (x.ndim - 1))


def _require(reason: str | None, name: str, what: str) -> None:
    if reason is not None:
        msg = f"{name} can't be {what}: {reason}"
        raise UsdcoreError(msg)
