"""Where a forward's time goes, and which part of it makes the measured ratio another than the MACs ratio.

A forward's time has five parts: matrix products (what MACs count), everything else that touches memory (norms,
activations, softmax, sums, copies), moving rows for branches that run for some images, gate networks, and what lies
between operations: the calls themselves. Were time proportional to MACs, each part would shrink by the MACs ratio;
what a part takes beyond that, over the dense model's time, is its share of the gap, and the shares add up to the gap.
"""

from __future__ import annotations

import time
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch

from usdcore.units.types import FeedForwardUnit

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from torch import Tensor, nn

    from usdcore.gates import Gating
    from usdcore.units.types import Units

PARTS = ("products", "memory", "rows", "gates", "calls")
_GATES = "usdcore::gates"
_PRODUCTS = ("mm", "conv", "attention", "einsum", "matmul", "linear")
_ROWS = ("index_select", "index_copy", "index_add", "aten::index", "nonzero", "gather", "scatter", "aten::cat")
#: Widths that are no multiple of this leave vector registers, or tiles of a matrix unit, partly empty.
ALIGNED = {torch.float32: 8}
ALIGNED_HALF = 32
#: A gap below this (a share of the dense time) has no cause worth naming.
SMALL = 0.01


def parts_of(model: nn.Module, batch: Tensor, gating: Gating | None, median_ms: float) -> dict[str, float]:
    """Milliseconds of each of `PARTS` of one forward on a batch [B, C, H, W] that takes `median_ms`.

    On a CPU the gates' share is taken by the clock, as a profiler slows their short operations; a profiled forward
    gives the other shares (operations' own times, and what lies between them), and the measurement without a profiler
    the whole.
    """
    on_cuda = batch.device.type == "cuda"
    passes = 1 if median_ms > 500 else 3
    use: dict[str, Any] = {"use_device": "cuda"} if on_cuda else {"use_kineto": False}
    model(batch)
    with _marked(gating) as gate_seconds:
        share = 0.0 if on_cuda else _ran(model, batch, passes, gate_seconds)
        with torch.autograd.profiler.profile(**use) as profile:
            started = time.perf_counter()
            for _ in range(passes):
                model(batch)
            if on_cuda:
                torch.cuda.synchronize()
            whole = time.perf_counter() - started
    found = dict.fromkeys(PARTS, 0.0)
    for event in profile.function_events or ():
        if on_cuda and "CPU" in str(event.device_type):
            found[_part(event)] += 1e-6 * event.self_device_time_total
        elif not on_cuda:
            found[_part(event)] += 1e-6 * event.self_cpu_time_total
    found["calls"] = max(0.0, whole - sum(found.values()))
    if not on_cuda:
        rest = sum(seconds for part, seconds in found.items() if part != "gates")
        found["gates"] = rest * share / (1 - share)
    scale = median_ms / sum(found.values())
    return {part: seconds * scale for part, seconds in found.items()}


def _ran(model: nn.Module, batch: Tensor, passes: int, gate_seconds: list[float]) -> float:
    """The share of a forward's time that gates take."""
    gate_seconds.clear()
    started = time.perf_counter()
    for _ in range(passes):
        model(batch)
    return sum(gate_seconds) / (time.perf_counter() - started)


def _part(event: Any) -> str:
    around = event
    while around is not None:
        if around.name == _GATES:
            return "gates"
        around = around.cpu_parent
    if any(word in event.name for word in _ROWS):
        return "rows"
    return "products" if any(word in event.name for word in _PRODUCTS) else "memory"


@contextmanager
def _marked(gating: Gating | None) -> Iterator[list[float]]:
    """What gates do is told apart in a profile; the list gets the seconds of each time that they are asked."""
    seconds: list[float] = []
    if gating is None:
        yield seconds
        return
    draw = gating._draw

    def marked(tap: str | None, x_BNC: Tensor | None) -> None:
        with torch.profiler.record_function(_GATES):
            started = time.perf_counter()
            draw(tap, x_BNC)
            seconds.append(time.perf_counter() - started)

    gating.__dict__["_draw"] = marked
    try:
        yield seconds
    finally:
        del gating.__dict__["_draw"]


def gap_of(ours: Mapping[str, float], dense: Mapping[str, float], macs_ratio: float) -> dict[str, float]:
    """By part, how much of the gap between the time ratio and the MACs ratio it makes: shares of the dense time."""
    whole = sum(dense.values())
    return {part: (ours[part] - macs_ratio * dense[part]) / whole for part in PARTS}


def cause(gap: float, by_part: Mapping[str, float], noise: float, odd: list[str], batch_size: int) -> str:
    """The likely cause of a gap between the time ratio and the MACs ratio, in words."""
    if abs(gap) <= max(SMALL, noise):
        return "none beyond noise"
    if gap < 0:
        return "faster than its MACs say: smaller buffers fit the caches"
    part = max(by_part, key=lambda name: by_part[name])
    share = f"{100 * by_part[part]:.1f} of {100 * gap:.1f} points"
    if part == "products" and odd:
        more = f" and {len(odd) - 2} more" if len(odd) > 2 else ""
        return f"odd widths ({', '.join(odd[:2])}{more}): products are slower per MAC, {share}"
    words = {
        "products": "smaller matrices are slower per MAC",
        "memory": "memory traffic that MACs do not count: norms, activations, softmax, sums",
        "rows": "moving the rows of images that do not skip",
        "gates": "the gate networks' own time",
        "calls": f"calls between operations, which a batch of {batch_size} does not hide",
    }
    return f"{words[part]}, {share}"


def odd_widths(units: Units, dtype: torch.dtype) -> list[str]:
    """The sizes of a model's units that are slow on most machines: `blocks.0.mlp 1276`, heads of unequal dims."""
    step = ALIGNED.get(dtype, ALIGNED_HALF)
    found = []
    for unit in units.all:
        if isinstance(unit, FeedForwardUnit):
            if unit.hidden % step:
                found.append(f"{unit.name} {unit.hidden}")
            continue
        whole = {"v_dims": unit.v_dim, "qk_dims": unit.qk_dim}
        dims = [g for g in unit.groups if g.kind in whole and (unit.num_heads * whole[g.kind]) % g.size]
        found += [f"{unit.name} {g.size} {g.kind} in {unit.num_heads} heads" for g in dims]
    return found
