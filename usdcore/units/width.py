"""The widths of the residual streams as groups.

Looked for only when someone asks: it takes a label pass of its own over the recorded forward, in which residual adds
tie what they join. All readers and writers of a stream are then cut together.
"""

from __future__ import annotations

import dis
from functools import cache
from types import FunctionType
from typing import TYPE_CHECKING, Any

from usdcore.units.drafts import components
from usdcore.units.follow import follow
from usdcore.units.labels import label
from usdcore.units.layers import on_cpu
from usdcore.units.streams import Stream, explain, find_streams
from usdcore.units.tally import Tally
from usdcore.units.types import WIDTH, Attribute, Group, Widths
from usdcore.units.width_costs import Resized, costs_in_widths

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from torch import nn

    from usdcore.units.execute import Executor
    from usdcore.units.labelling import Labelling
    from usdcore.units.width_costs import Parts

    #: Values of int attributes, by module and name.
    Sizes = Mapping[tuple[str, str], int]

#: What timm's models call the width of what their features have, for users; no forward reads it.
TOLD = frozenset({"embed_dim", "num_features", "head_hidden_size"})
#: The methods that make a new head.
RESETS = ("reset_classifier", "reset")
NUM_REASONS = 3


class WidthFinder:
    """Finds the widths once, when it is called, and then forgets what it needed for that."""

    def __init__(self, flow: Labelling, parts: Parts, sizes: Sizes, executor: Executor) -> None:
        self._source: tuple[Labelling, Parts, Sizes, Executor] | None = (flow, parts, sizes, executor)
        self._found: Widths | None = None

    def __call__(self) -> Widths:
        """The widths of the streams of the recorded model."""
        if self._found is None:
            assert self._source is not None
            with on_cpu():
                self._found = _find(*self._source)
            self._source = None
        return self._found


def told_sizes(model: nn.Module) -> Sizes:
    """Int attributes that no forward need read, but that a width may have to follow to: what timm's models tell of
    their features, and whatever the methods that make a new head read.
    """
    found: dict[tuple[str, str], int] = {}
    for path, module in model.named_modules():
        kind: Any = type(module)
        names = _reset(kind) if path else _reset(kind) | TOLD
        for attribute in sorted(names & vars(module).keys()):
            found |= {(path, name): value for name, value in _ints(attribute, vars(module)[attribute]).items()}
    told = getattr(model, "feature_info", None)
    for number, info in enumerate(told if isinstance(told, list) else []):
        if isinstance(info, dict) and type(info.get("num_chs")) is int:
            found["", f"feature_info[{number}][num_chs]"] = info["num_chs"]
    return found


def _find(main: Labelling, parts: Parts, sizes: Sizes, executor: Executor) -> Widths:
    flow = label(main.trace, main.ancestry, {}, main.macs)
    streams = find_streams(flow, components(flow), main.residuals.values())
    names = _names(streams)
    tally = Tally(flow, [stream.draft for stream in streams])
    explain(tally, streams)
    followed = follow(tally, executor)
    macs, params = costs_in_widths(main, parts, Resized(tally, names))
    dense = {name: stream.draft.size for name, stream in zip(names, streams, strict=True)}
    groups = {}
    for index, (name, stream) in enumerate(zip(names, streams, strict=True)):
        attributes, edits = followed[index]
        told = _told(sizes, streams, stream, {(a.module, a.name) for a in attributes})
        one_less = dense | {name: stream.draft.size - 1}
        groups[name] = Group(
            name=name,
            kind=WIDTH,
            size=stream.draft.size,
            members=tally.members(index),
            attributes=(*attributes, *told),
            masks=(),
            edits=edits,
            macs_per_entry=macs["model", ""].at(dense) - macs["model", ""].at(one_less),
            params_per_entry=params["model", ""].at(dense) - params["model", ""].at(one_less),
            reason="; ".join([*dict.fromkeys(stream.draft.reasons)][:NUM_REASONS]) or None,
            norms=tuple(dict.fromkeys(stream.norms)),
        )
    return Widths(groups, macs, params, _why_none(groups))


def _names(streams: list[Stream]) -> list[str]:
    """`width` for the only stream; of several, each is named after the module that first adds to it."""
    if len(streams) == 1:
        return [WIDTH]
    names: list[str] = []
    for stream in streams:
        place, number = stream.place or "model", 1
        while f"{place}:{WIDTH}" in names:
            number += 1
            place = f"{stream.place or 'model'}#{number}"
        names.append(f"{place}:{WIDTH}")
    return names


def _why_none(groups: Mapping[str, Group]) -> str | None:
    if WIDTH in groups:
        return None
    if not groups:
        return "no residual stream was found whose channels could be followed"
    shown = ", ".join(f"{group.size} ({name})" for name, group in groups.items())
    return f"the model has {len(groups)} residual streams, each with a width of its own: {shown}"


def _told(sizes: Sizes, streams: list[Stream], stream: Stream, known: set[tuple[str, str]]) -> Iterator[Attribute]:
    """The told sizes that are a stream's width. Of streams equally wide they are the last one's: the head reads it."""
    same = [other for other in streams if other.draft.size == stream.draft.size]
    for (module, name), value in sizes.items():
        if value == stream.draft.size and same[-1] is stream and (module, name) not in known:
            yield Attribute(module, name, 1)


@cache
def _reset(kind: type) -> frozenset[str]:
    """The attributes that the methods that make a new head read."""
    return frozenset(name for method in RESETS for name in _read(kind, method))


def _read(kind: type, method: str) -> set[str]:
    """The attributes that a method's code reads, but for those that it must be given: `num_classes`."""
    function = getattr(kind, method, None)
    if not isinstance(function, FunctionType):
        return set()
    code = function.__code__
    given = code.co_varnames[: code.co_argcount - len(function.__defaults__ or ())]
    return {str(step.argval) for step in dis.get_instructions(code) if step.opname == "LOAD_ATTR"} - {*given}


def _ints(name: str, value: object) -> dict[str, int]:
    """An int attribute, or the ints in a tuple or list."""
    if type(value) is int:
        return {name: value}
    items = enumerate(value) if isinstance(value, tuple | list) else ()
    return {f"{name}[{i}]": item for i, item in items if type(item) is int}
