"""Splits: how a training batch is cut into the groups that share one gate decision (USDC, Table 5)."""

from __future__ import annotations

from usdcore.hooks import Register, hookimpl

from .config import AverageSplit, RandomSplit, RecursiveSplit


@hookimpl
def usdcore_register(register: Register) -> None:
    """Register the three strategies of Table 5."""
    register.split(
        name="average",
        config=AverageSplit,
        implementation="usdcore_splits.splits:Average",
        summary="equal groups (Avg-32, Avg-8)",
    )
    register.split(
        name="random",
        config=RandomSplit,
        implementation="usdcore_splits.splits:Random",
        summary="group sizes drawn uniformly",
    )
    register.split(
        name="recursive",
        config=RecursiveSplit,
        implementation="usdcore_splits.splits:Recursive",
        summary="halving: 128, 64, ..., 2, 1, 1",
    )
