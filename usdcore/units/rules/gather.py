"""Ops that pick positions by an index tensor: what lies along the other axes travels through.

Which positions are picked is data (a table of relative positions, say), so along the picked axes nothing is known.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from usdcore.units.layers import Layers, axes
from usdcore.units.rules.shape import carry_probabilities
from usdcore.units.trace import Ref

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Tensor

    from usdcore.units.labelling import Labelling
    from usdcore.units.trace import Op


def index(flow: Labelling, op: Op) -> None:
    """`x[:, i, j]`: the axes that `i` and `j` index together become those of the index tensors."""
    given = [i.value if isinstance(i, Ref) else None for i in op.args[1]]
    picked = [axis for axis, value in enumerate(given) if value is not None]
    shape, output = flow.shape(op.inputs[0]), flow.shape(op.outputs[0])
    number = len(output) - len(shape) + len(picked)  # of axes that stand for the picked ones
    start = picked[0] if picked[-1] - picked[0] == len(picked) - 1 else 0

    def through(layer: Tensor) -> Tensor:
        for axis in picked:
            layer = layer.narrow(axis, 0, 1)
        layer = layer.squeeze(tuple(picked))
        layer = layer[(slice(None),) * start + (None,) * number]
        return layer.expand(output)

    _pass(flow, op, op.inputs[0], frozenset(picked), through)


def index_select(flow: Labelling, op: Op) -> None:
    """Positions along one axis, by an index [n]."""
    axis, output = op.args[1] % len(flow.shape(op.inputs[0])), flow.shape(op.outputs[0])
    _pass(flow, op, op.inputs[0], frozenset({axis}), lambda layer: layer.narrow(axis, 0, 1).expand(output))


def embedding(flow: Labelling, op: Op) -> None:
    """Rows of a table [V, C]: the output is [..., C]."""
    output = flow.shape(op.outputs[0])
    _pass(flow, op, op.inputs[0], frozenset({0}), lambda layer: layer[0].expand(output))


def _pass(flow: Labelling, op: Op, source: int, picked: frozenset[int], through: Callable[[Tensor], Tensor]) -> None:
    output = op.outputs[0]
    for layer in flow.labels.get(source, ()):
        if axes(layer) & picked:
            flow.taint((layer,), "unknown", f"{flow.where(op)} picks among its entries by an index")
    flow.labels[output] = _through(flow.labels.get(source, ()), picked, through)
    if not flow.trace.values[source].is_data:
        flow.set_slots(output, _through(flow.slots(source), picked, through))
    carry_probabilities(flow, op)


def _through(layers: Layers, picked: frozenset[int], through: Callable[[Tensor], Tensor]) -> Layers:
    return tuple(through(layer) for layer in layers if not axes(layer) & picked)
