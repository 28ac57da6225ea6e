"""What a block costs for any number of tokens: a polynomial of degree two, found by finding its units at three."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING
from weakref import WeakKeyDictionary

import torch

from usdcore.errors import UsdcoreError
from usdcore.units import find_units

if TYPE_CHECKING:
    from collections.abc import Iterable

    from torch import nn

    from usdcore.units.types import BlockUnit, Units

#: MACs of a branch ("branch", name), of an entry of a group without what can be pruned of it ("own", name) and of a
#: pair of its entries ("pairs", name), per image: the terms that do not depend on the number of tokens n, that are
#: multiplied by n, and by n squared.
Price = tuple[int, int, int]
Prices = Mapping[tuple[str, str], Price]

#: By block, for as long as its unit is about: a strategy asks before its gates are attached, which asks again.
_KNOWN: WeakKeyDictionary[BlockUnit, Prices] = WeakKeyDictionary()


def token_prices(model: nn.Module, units: Units, blocks: Iterable[BlockUnit]) -> Prices:
    """The prices of blocks. Errors: a block that can't be run with another number of tokens, with where and why."""
    found: dict[tuple[str, str], Price] = {}
    alike: dict[tuple[object, ...], Prices] = {}  # blocks of one class that are printed alike cost the same
    for block in blocks:
        if block not in _KNOWN:
            module = model.get_submodule(block.name)
            kind = (type(module), repr(module), block.num_tokens, block.width)
            if kind not in alike:
                alike[kind] = _prices(module, block)
            _KNOWN[block] = _checked(block, {(what, _named(block, own)): p for (what, own), p in alike[kind].items()})
        found |= _KNOWN[block]
        count = block.num_tokens
        assert count is not None
        for unit in units.all:
            for group in unit.groups if unit.branch in block.branches else ():  # those that gates bring
                found.setdefault(("own", group.name), (0, group.own_macs // count, 0))
                found.setdefault(("pairs", group.name), (0, 0, 0))
    return found


def _prices(module: nn.Module, block: BlockUnit) -> Prices:
    """By the names of branches and groups inside the block."""
    count = block.num_tokens
    if count is None or count < 3:
        msg = f"{block.name}: its stream is no sequence of tokens [B, N, C], so none can be left out"
        raise UsdcoreError(msg)
    seen = [_costs(module, block, n) for n in (count, count - 1, count - 2)]
    return {key: _fit(count, [costs[key] for costs in seen]) for key in seen[0]}


def _checked(block: BlockUnit, prices: Prices) -> Prices:
    for branch in block.branches:
        price = prices.get(("branch", branch.name))
        if price is None or at(price, block.num_tokens or 0) != branch.macs or branch.constant_macs:
            msg = f"{branch.name}: what it costs is not told by its number of tokens, so none can be left out"
            raise UsdcoreError(msg)
    return prices


def at(price: Price, count: int) -> int:
    """The MACs for so many tokens."""
    return price[0] + count * (price[1] + count * price[2])


def _costs(module: nn.Module, block: BlockUnit, count: int) -> dict[tuple[str, str], int]:
    try:
        units = find_units(module, torch.empty(1, count, block.width, device="meta"))
    except UsdcoreError as error:
        msg = f"{block.name}: its tokens can't be left out, as it does not run with {count} of them: {error}"
        raise UsdcoreError(msg) from None
    costs = {("branch", name): branch.macs for name, branch in units.branches.items()}
    for name, group in units.groups.items():
        costs["own", name] = group.own_macs
        costs["pairs", name] = group.macs_per_pair
    return costs


def _named(block: BlockUnit, inner: str) -> str:
    return f"{block.name}{inner}" if inner.startswith(":") else f"{block.name}.{inner}"


def _fit(count: int, macs: list[int]) -> Price:
    """The polynomial through the MACs of `count`, `count` - 1 and `count` - 2 tokens."""
    square = (macs[0] - 2 * macs[1] + macs[2]) // 2
    linear = macs[0] - macs[1] - square * (2 * count - 1)
    return macs[0] - count * (linear + count * square), linear, square
