"""What a process alone has seen (`Strategy.own`), in a run's states: the first process writes everybody's, each takes
its own back.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Mapping

    from usdcore.engine.processes import Processes
    from usdcore.strategy import Strategy


def with_all(state: dict[str, Any], strategies: Mapping[str, Strategy], processes: Processes) -> dict[str, Any]:
    """In the first process, the state with what is the other processes' own under "own"; all call it."""
    saved = state["strategies"]
    own = {
        name: {key: saved[name][key] for key in strategy.own if key in saved[name]}
        for name, strategy in strategies.items()
        if strategy.own and name in saved
    }
    return {**state, "own": processes.gather(own)} if own else state


def mine(state: dict[str, Any], processes: Processes) -> dict[str, Any]:
    """A state that was read, as this process's; one that the run did not have before takes what another had seen."""
    others = state.get("own") or []
    if processes.is_first or not others:
        return state
    own = others[(processes.rank - 1) % len(others)]
    for strategies in (state["strategies"], (state["fit"] or {}).get("strategies", {})):
        for name, seen in own.items():
            if name in strategies:
                strategies[name] |= seen
    return state
