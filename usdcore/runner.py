"""Run a gated model: compute every branch and mask it (training), or leave out what is off (evaluation).

Only the forward of a block's own module is replaced, by an object that calls the module's own children in the order
that the graph showed; parameters, names and every other method of the host stay. The objects hold modules, not
closures, so that a deepcopy of the model has its own.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from usdcore.errors import UsdcoreError
from usdcore.gates import Gating, Mode

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from usdcore.units.types import BlockUnit, Branch, Group, Units

CHILD = "usdcore"


class BlockForward:
    """The forward of a block as a sum of residual branches: `x = x + branch(x)` for each branch that is left."""

    def __init__(self, owner: nn.Module, name: str, branches: Iterable[tuple[str, tuple[str, ...]]]) -> None:
        self.owner = owner
        self.name = name
        self.branches = list(branches)
        self.gating: Gating | None = None
        self.has_drops = False

    def __call__(self, x_BNC: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """The block's output for the stream `x_BNC`."""
        if any(not (a is None or a is False) for a in (*args, *kwargs.values())):
            msg = (
                f"{self.name}: the block was called with more than the stream (an attention mask?), "
                "which a gated block does not take"
            )
            raise UsdcoreError(msg)
        if self.gating is None:
            return self._branches(x_BNC)
        self.gating.enter(self.name, x_BNC)
        state, keep = self.gating.state, self.gating.state.factor(self.name)
        if keep is None:
            return self._branches(x_BNC)
        if self.gating.skips:
            return self._skip(x_BNC, keep, self._branches)
        around, weight, out = state.around(self.name), _rows(keep, x_BNC), self._branches(x_BNC)
        if around is None:  # exactly `out` where the weight is 1
            return torch.lerp(x_BNC, out.to(x_BNC.dtype), weight.expand_as(x_BNC))
        return weight * out + (_rows(around, x_BNC) - weight) * x_BNC

    def delta(self, x: Tensor, chain: tuple[str, ...]) -> Tensor:
        """The branch itself, from the host's own modules; any number of rows."""
        for child in chain:
            x = getattr(self.owner, child)(x)
        return x

    def _branches(self, x: Tensor) -> Tensor:
        for name, chain in self.branches:
            x = self._add(x, name, chain)
        return x

    def _add(self, x: Tensor, name: str, chain: tuple[str, ...]) -> Tensor:
        keep = None if self.gating is None else self.gating.state.factor(name)
        if keep is None:
            return x + self.delta(x, chain)
        assert self.gating is not None
        if self.gating.skips:
            return self._skip(x, keep, lambda rows: rows + self.delta(rows, chain))
        around = self.gating.state.around(name)
        stream = x if around is None else _rows(around, x) * x
        return stream + _rows(keep, x) * self.delta(x, chain)

    def _skip(self, x: Tensor, keep: Tensor, run: Callable[[Tensor], Tensor]) -> Tensor:
        """`run` for the rows of `x` that `keep` has on; the others pass."""
        assert self.gating is not None
        state = self.gating.state
        if keep.is_meta:  # a traced model has no decisions: show every branch
            return run(x)
        if keep.ndim == 0:
            return run(x) if bool(keep) else x
        outer = state.rows
        rows = (keep if outer is None else keep[outer]).nonzero().flatten()
        if len(rows) in (0, len(x)):
            return run(x) if len(rows) else x
        state.rows = rows if outer is None else outer[rows]
        out = x.index_copy(0, rows, run(x.index_select(0, rows)).to(x.dtype))
        state.rows = outer
        return out


class GroupMask:
    """A forward pre-hook: multiplies the entries of a group where its consumer reads them."""

    def __init__(self, gating: Gating, group: Group) -> None:
        assert group.mask is not None
        self.gating = gating
        self.group = group.name
        entry_of = torch.from_numpy(group.mask.entry_of)
        self.entry_of = entry_of.clamp(min=0)
        self.is_free = entry_of < 0

    def __call__(self, module: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...] | None:
        """Replace the consumer's first input; None (nothing to do) where no gate acts."""
        keep = self.gating.state.factor(self.group)
        if keep is None:
            return None
        x = args[0]
        if keep.ndim == 0:
            return (x * keep, *args[1:])
        if keep.ndim == 2 and self.gating.state.rows is not None:
            keep = keep[self.gating.state.rows]
        if self.entry_of.device != keep.device:  # once, not in every forward
            self.entry_of, self.is_free = self.entry_of.to(keep.device), self.is_free.to(keep.device)
        factor = keep[..., self.entry_of].masked_fill(self.is_free, 1.0)
        if factor.ndim == 2:
            factor = factor.reshape(len(factor), *[1] * (x.ndim - 2), -1)
        return (x * factor.to(x.dtype), *args[1:])


class Begin:
    """A forward pre-hook of the whole model: a new forward starts."""

    def __init__(self, gating: Gating) -> None:
        self.gating = gating

    def __call__(self, module: nn.Module, args: tuple[Any, ...]) -> None:
        """Draw the static gates for this forward."""
        self.gating.begin(len(args[0]) if args else 0)


def gating_of(model: nn.Module) -> Gating | None:
    """The gates of a model, or None."""
    child = model._modules.get(CHILD)
    return child if isinstance(child, Gating) else None


def attach(model: nn.Module, units: Units, gating: Gating) -> None:
    """Make `model` run under `gating`, in place. Errors: a gate at a site that can't be gated, with the reason."""
    if CHILD in dict(model.named_children()):
        msg = f"the model already has a child named {CHILD!r}: detach its gates first"
        raise UsdcoreError(msg)
    model.add_module(CHILD, gating)
    model.register_forward_pre_hook(Begin(gating))
    sites = {site for gate in gating.all() for site in gate.sites}
    taps = {gate.tap for gate in gating.all()}
    gating.blocks = {block.name: tuple(branch.name for branch in block.branches) for block in units.blocks}
    for block in units.blocks:
        is_whole = block.name in sites
        gated = [branch for branch in block.branches if is_whole or branch.name in sites]
        for branch in gated:
            _require(branch.reason, branch.name, "gated")
        if gated or block.name in taps:
            block_forward(model, block).gating = gating
    for name, group in units.groups.items():
        if name in sites:
            _require(group.reason, name, "pruned")
            assert group.mask is not None
            model.get_submodule(group.mask.module).register_forward_pre_hook(GroupMask(gating, group))
    unknown = sites - set(units.branches) - set(units.groups) - set(gating.blocks)
    if unknown:
        msg = f"no such branch, block or group in this model: {', '.join(sorted(unknown))}"
        raise UsdcoreError(msg)


def detach(model: nn.Module) -> Gating | None:
    """Take the gates off again, in place; returns them. Branches that were removed for good stay removed.

    Hooks are found by their type: a handle kept from `attach` would not follow a deepcopy of the model.
    """
    gating = gating_of(model)
    if gating is None:
        return None
    del model._modules[CHILD]
    for module in model.modules():
        for key, hook in list(module._forward_pre_hooks.items()):
            if isinstance(hook, GroupMask | Begin):
                del module._forward_pre_hooks[key]
        forward = module.__dict__.get("forward")
        if isinstance(forward, BlockForward):
            forward.gating = None
            if not forward.has_drops:
                del module.__dict__["forward"]
    return gating


def block_forward(model: nn.Module, block: BlockUnit) -> BlockForward:
    """The replaced forward of a block, put in place on first use."""
    owner = model.get_submodule(block.name)
    forward = owner.__dict__.get("forward")
    if not isinstance(forward, BlockForward):
        for branch in block.branches:
            _require(branch.reason, branch.name, "called on its own")
        forward = BlockForward(owner, block.name, [(b.name, b.chain) for b in block.branches])
        owner.__dict__["forward"] = forward
    return forward


def drop_branch(model: nn.Module, block: BlockUnit, branch: Branch) -> None:
    """Remove a branch for good, in place: its modules go, the block no longer calls it."""
    forward = block_forward(model, block)
    forward.has_drops = True
    forward.branches = [entry for entry in forward.branches if entry[0] != branch.name]
    still_used = {child for _, chain in forward.branches for child in chain}
    for child in branch.chain:
        if child not in still_used:
            setattr(forward.owner, child, None)


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
